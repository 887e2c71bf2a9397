//! `cordee-worker`: what computes in a CUDA build, on GPUs and on the CPU. `cordee` starts it, with
//! the arguments that `cordee` was given; it understands them all.

#![forbid(unsafe_code)]

mod engine;

use std::process;

#[global_allocator]
static ALLOCATOR: cordee_memory::Recycler = cordee_memory::Recycler::new();

fn main() -> process::ExitCode {
    cordee::run(Some(engine::run))
}
