//! What computes: one file for each verb that needs the crates on candle.
//!
//! A module of `cordee` in a build for the CPU, and of `cordee-worker` in a CUDA build; the library
//! beside it knows nothing of it.

mod export;
mod generate;
mod opened;
mod plan;
mod ranks;
mod smoke;
mod worker;

use cordee::{Failure, Verb};

/// Does what a verb asks.
pub(crate) fn run(verb: &Verb) -> Result<u8, Failure> {
    match verb {
        Verb::Worker => worker::run(),
        Verb::Plan(args) => plan::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Export(args) => export::run(args),
    }
}
