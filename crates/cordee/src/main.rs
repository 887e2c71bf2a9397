//! `cordee`: train transformer language models, over worker processes that move in step.
//!
//! In a build for the CPU this is all there is. In a CUDA build it is the command line alone, which
//! starts on a machine without CUDA and has `cordee-worker` compute.

#![forbid(unsafe_code)]

#[cfg(not(feature = "cuda"))]
mod engine;

use std::process;

#[cfg(not(feature = "cuda"))]
#[global_allocator]
static ALLOCATOR: cordee_memory::Recycler = cordee_memory::Recycler::new();

fn main() -> process::ExitCode {
    #[cfg(not(feature = "cuda"))]
    return cordee::run(Some(engine::run));
    #[cfg(feature = "cuda")]
    return cordee::run(None);
}
