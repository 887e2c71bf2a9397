//! One file per command.

mod bench;
mod checkpoint;
mod config;
mod export;
mod generate;
mod opened;
mod plan;
mod prepare;
mod ranks;
mod resume;
mod train;
mod verify;
mod worker;

use crate::{args::Command, failure::Failure};

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Train(args) => train::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::Plan(args) => plan::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Config(command) => config::run(&command),
        Command::Checkpoint(command) => checkpoint::run(&command),
        Command::Verify(command) => verify::run(&command),
        Command::Worker => worker::run(),
    }
}
