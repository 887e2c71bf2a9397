//! The command line of `cordee`: everything but the computing.
//!
//! The one place that reads arguments and the environment, prints, and exits. A command is a
//! function that returns an exit code or a [`Failure`]; everything it does is in the crates below.
//!
//! What computes is the *engine*, in `src/engine`, a module of the programs that have it and not of
//! this library, which must not name candle nor any crate that is built on it. In a build for the CPU
//! `cordee` has the engine; in a CUDA build `cordee-worker` alone does, since whatever is linked with
//! CUDA's libraries does not start where they are missing. No other crate depends on this one.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod console;
mod devices;
mod failure;
mod gpus;
mod job;
mod libraries;
mod machine;
#[cfg(test)]
mod reference;
mod run_dir;
mod run_record;
mod worker_program;

use std::process;

use clap::Parser;

use crate::args::Cli;

pub use crate::{
    args::{ConfigArgs, DeviceArg, ExportArgs, ExportType, GenerateArgs, PlanArgs},
    commands::{cache_directory, load, valid_checkpoint},
    console::{Console, bytes},
    devices::{one_device, plan, workers_per_gpu},
    failure::Failure,
    gpus::memory as gpu_memory,
    job::{BenchTask, CollectivesTask, Job, SmokePart, SmokeTask, Task, TraceTask, TrainTask},
    libraries::nccl_paths,
    machine::memory,
    run_dir::{RunDir, TOKENIZER_FILE},
};

/// What only a program with the engine can do.
#[derive(Debug)]
pub enum Verb {
    /// Be one rank of a job.
    Worker,
    /// Tell how much memory a run will need.
    Plan(PlanArgs),
    /// Continue a prompt.
    Generate(GenerateArgs),
    /// Write weights for other programs.
    Export(ExportArgs),
}

/// Does what a verb asks, and returns the exit code.
pub type Engine = fn(&Verb) -> Result<u8, Failure>;

/// The whole program: arguments to a command to an exit code. Without an engine, what needs one is
/// done by `cordee-worker`, which takes the place of this process.
pub fn run(engine: Option<Engine>) -> process::ExitCode {
    let cli = Cli::parse();
    let exit = commands::run(cli.command, engine).unwrap_or_else(|failure: Failure| {
        Console::print_error(&failure.to_string());
        failure.code
    });
    process::ExitCode::from(exit)
}
