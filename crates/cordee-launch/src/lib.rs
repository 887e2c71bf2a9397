//! Starts one worker process per rank of this node, watches them, and says how the run ended.
//!
//! What it keeps, whatever happens:
//!
//! - The first failure is the one that is named. Ranks that fell because another rank fell, or that
//!   the launcher killed, are listed but never as the cause.
//! - What a worker printed is in its log file line by line, however the worker, the launcher or the
//!   terminal fares.
//! - No worker outlives the launcher, and none is left as a zombie. What workers started is killed with
//!   them, as far as the machine lets us see it.
//! - Neither a slow terminal nor a paused one holds up a worker, a stop request or the supervision.
//!
//! It must not know what a worker computes: any program that reads torchrun's variables can be
//! started, and one that sends [`cordee_protocol::WorkerMessage`]s is understood better. It never
//! touches candle or CUDA, prints nothing and handles no signal itself; the binary brings an
//! [`Observer`] and increments [`StopRequests`].
//!
//! Restarting is a caller's loop around [`run`], with the next [`Launch::attempt`]; [`Restarts`] says
//! whether.
//!
//! Nodes of one job find each other in [`rendezvous`], which knows nothing of the rest.
//!
//! ```text
//! main thread     spawns, then hands notices to the observer
//! supervisor      one thread: endings, stop requests and deadlines in, signals out
//! wait            one thread: hears which process ended, in order
//! read            one thread a rank: pipes into the log file, then to the observer
//! http page       one thread, where a caller asks for an [`HttpPage`]; no launch waits for it
//! ```

#![deny(unsafe_code)]

mod cause;
mod classify;
mod deaths;
mod ending;
mod error;
mod hang;
mod hierarchy;
mod http;
mod identity;
mod last_words;
mod launch;
mod lines;
mod log;
mod member;
mod notice;
mod observer;
mod orphans;
mod out_of_memory;
mod outcome;
mod page;
mod pages;
mod placement;
mod process;
mod process_state;
mod reader;
pub mod rendezvous;
mod report;
mod restart;
#[expect(
    unsafe_code,
    reason = "what happens between fork and exec is unsafe to say in Rust"
)]
mod spawn;
mod stacks;
mod stop;
mod supervise;
mod threads;
mod verdict;
mod watchdog;
mod worker_group;

pub use ending::{Ending, Fate};
pub use error::LaunchError;
pub use hang::{Guilt, Hang, HungRank};
pub use http::{Health, HttpPage, MetricsText, PageContent, PageError};
pub use identity::{Flags, Identity, IdentityError, Lookup};
pub use launch::{Launch, Own, Watch, World, run};
pub use observer::{Observer, Stream};
pub use outcome::Outcome;
pub use pages::Pages;
pub use placement::{NoPlacement, Placement, allowed_cpus, cpu_list};
pub use process_state::ProcessState;
pub use report::{FailureReport, LostNode, OtherRank, Silence, SilentRank};
pub use restart::{Decision, RestartPolicy, Restarts};
pub use stop::StopRequests;
pub use watchdog::{Deadlines, StepTimes};
