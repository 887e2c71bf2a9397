//! What a machine can do, measured: is it fit to train on?
//!
//! Every function here measures one thing and returns figures. What is good enough, what is said of
//! it, and what becomes of a check that never returns is decided elsewhere: this crate knows no
//! thresholds, prints nothing, and does not know who asked.

#![forbid(unsafe_code)]

mod collectives;
mod deadline;
mod device;
mod error;
mod host;
mod storage;

pub use collectives::{Collectives, Memory, measure_collectives};
pub use deadline::{Probe, run_probes, within};
pub use device::DeviceBench;
pub use error::SmokeError;
pub use host::host_probes;
pub use storage::{StorageReport, measure_storage};

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, SmokeError>;
