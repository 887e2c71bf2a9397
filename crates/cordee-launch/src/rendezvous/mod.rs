//! Where the nodes of a job find each other: the store that the coordinator keeps, and the agents' way to
//! it.
//!
//! Every node runs one agent. The agent of node 0 is the coordinator: it keeps the store, and every other
//! agent holds one connection to it. Where the coordinator is and what proves that one belongs to the job
//! stands in a [`MeetingFile`] that all nodes see, or is told to everyone beforehand.
//!
//! A job is a row of generations, one for each attempt. Within one:
//!
//! ```text
//! agent                           coordinator
//!   join ------------------------>   node, host, fingerprint: alike on all nodes, or refused
//!   <---------------------- joined   from here on both beat; who is silent too long is lost
//!
//!   <------------------ gather (g)   asked of all who joined
//!   ready (g), offer ------------>   the addresses and ports of its listeners
//!   <---- start (g), or spare (g)    when all are ready, or some are and the last call is over
//!
//!   barrier (g), name ----------->   passed when every member came, broken when one cannot
//!   ended (g), report ----------->
//!   <-------- stop (g) or end (g)    gracefully, or now
//!
//!   <---------------- gather (g+1)   or finish: all leave
//! ```
//!
//! What holds whatever happens:
//!
//! - Members of a generation are distinct nodes in the order of their indices, node 0 first, and each was
//!   ready for that very generation. What is said of an older one is dropped on either side.
//! - No wait is without a deadline, and what a deadline ends says who is there and who is missing.
//! - A closed connection or `node_timeout` of silence is a lost node; time in which the listener itself
//!   did not run (a suspended job) is no silence. A lost agent may join again, and waits for the next
//!   generation like a spare.
//! - Nobody who does not know the job's secret is heard, kept anything for, or waited for
//!   ([`cordee_protocol::Dialing`] and what follows); who does not read is lost, and holds up nobody.
//!
//! A node that was blamed twice is left out while another can take its place. Losing the coordinator ends
//! the others: no other agent takes over in this version.
//!
//! The store itself (`store`) is a state machine without sockets, threads or a clock of its own; `server`
//! moves its bytes. It must not know what a worker is: offers, assignments, reports and statuses are the
//! callers' values.

mod addresses;
mod agent;
mod clock;
mod coordinator;
mod dial;
mod error;
mod fingerprint;
mod join;
mod link;
mod meeting_file;
mod message;
mod server;
mod store;
#[cfg(test)]
mod tests;

pub use agent::{Agent, AgentEvent};
pub use coordinator::{Coordinator, CoordinatorOptions, Gather};
pub use error::{Attendance, RendezvousError, Tried};
pub use fingerprint::{Difference, Fingerprint, Mismatch};
pub use join::{JoinOptions, Meet};
pub use meeting_file::MeetingFile;
pub use message::NodeInfo;
pub use store::{CoordinatorEvent, Loss, Member, NodeState, Standing};
