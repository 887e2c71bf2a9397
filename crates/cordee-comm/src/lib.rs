//! Process groups: what ranks do together with flat memory.
//!
//! [`ProcessGroup`] is the contract; [`SharedMemoryGroup`] keeps it for the ranks of one machine,
//! which read each other's memory in place, [`MachinesGroup`] for those of several, over TCP between
//! them, and [`NcclGroup`] for buffers of GPUs, over any [`HostGroup`].
//!
//! This crate does not know what a model is, nor why somebody wants a sum. It never decides when
//! to give up on a run: it returns errors that name the rank to look at.

mod call;
pub mod conformance;
mod emulated_link;
mod error;
mod group;
mod machines;
mod nccl;
mod record;
mod shard;
mod shared_memory;

pub use call::{Call, Operation, Place};
pub use emulated_link::EmulatedLink;
pub use error::{CommError, NcclFailure};
pub use group::{HostGroup, ProcessGroup, Witness};
pub use machines::{Machines, MachinesGroup, Neighbours};
pub use nccl::NcclGroup;
pub use record::{Record, Records};
pub use shard::shard_range;
pub use shared_memory::SharedMemoryGroup;

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, CommError>;
