//! What a machine can do, measured: is it fit to train on?
//!
//! Every function here measures one thing and returns figures. What is good enough, what is said of
//! it, and what becomes of a check that never returns is decided elsewhere: this crate knows no
//! thresholds, prints nothing, and does not know who asked.

#![forbid(unsafe_code)]

mod collectives;
mod error;

pub use collectives::{Collectives, Memory, measure_collectives};
pub use error::SmokeError;

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, SmokeError>;
