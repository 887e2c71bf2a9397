//! The training step and everything around it, in one rank.
//!
//! This crate composes what the floor below offers: it decides when segments run, when gradients
//! are summed over ranks, when weights change, when state goes to disk and what is reported. It must
//! not know how its process was started or what becomes of its reports: it reads no environment,
//! prints nothing and never exits.

#![forbid(unsafe_code)]

mod banner;
mod bench;
mod buckets;
mod checkpoints;
mod engine;
mod error;
mod evaluation;
mod held;
mod learner;
mod memory_plan;
mod optimizer;
mod out_of_memory;
mod progress;
mod reduction;
mod sample;
mod schedule;
mod state;
mod sums;
mod trace;
mod trainer;

pub use bench::{Bench, bench};
pub use buckets::Buckets;
pub use checkpoints::load_parameters;
pub use error::TrainError;
pub use memory_plan::{Knob, MemoryPlan, Place, knob};
pub use out_of_memory::OutOfMemory;
pub use sample::continue_text;
pub use schedule::learning_rate;
pub use state::{Compute, TrainState};
pub use trace::{Trace, replay};
pub use trainer::{Run, train};
