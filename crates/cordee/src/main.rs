//! `cordee`: train transformer language models, over worker processes that move in step.
//!
//! The one place that reads arguments and the environment, prints, and exits. A command is a
//! function that returns an exit code or a [`Failure`]; everything it does is in the crates below.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod console;
mod devices;
mod failure;
mod job;
mod machine;
#[cfg(test)]
mod reference;
mod run_dir;

use std::process;

use clap::Parser;

use crate::{args::Cli, console::Console, failure::Failure};

#[global_allocator]
static ALLOCATOR: cordee_memory::Recycler = cordee_memory::Recycler::new();

fn main() -> process::ExitCode {
    let cli = Cli::parse();
    let exit = commands::run(cli.command).unwrap_or_else(|failure: Failure| {
        Console::print_error(&failure.to_string());
        failure.code
    });
    process::ExitCode::from(exit)
}
