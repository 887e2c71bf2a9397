//! One file per command; those that need the engine are in `src/engine`.

mod bench;
mod chaos;
mod checkpoint;
mod config;
mod doctor;
mod launch;
mod nodes;
mod played;
mod prepare;
mod ranks;
mod resume;
mod runs;
mod smoke;
mod status;
mod train;
mod verify;

use crate::{Engine, Verb, args::Command, failure::Failure, worker_program};

pub(crate) use self::chaos::FaultKind;
pub use self::{checkpoint::valid_checkpoint, config::load, prepare::cache_directory};

/// Runs a command to its end.
pub(crate) fn run(command: Command, engine: Option<Engine>) -> Result<u8, Failure> {
    let verb = match command {
        Command::Train(args) => return train::run(&args),
        Command::Bench(command) => return bench::run(&command),
        Command::Config(command) => return config::run(&command),
        Command::Checkpoint(command) => return checkpoint::run(&command),
        Command::Smoke(args) => return smoke::run(&args),
        Command::Chaos(args) => return chaos::run(&args),
        Command::Doctor(args) => return Ok(doctor::run(&args)),
        Command::Verify(command) => return verify::run(&command),
        Command::Status(args) => return status::run(&args),
        Command::Runs(command) => return runs::run(&command),
        Command::Launch(args) => return launch::run(&args),
        Command::Plan(args) => Verb::Plan(args),
        Command::Generate(args) => Verb::Generate(args),
        Command::Export(args) => Verb::Export(args),
        Command::Worker => Verb::Worker,
    };
    match engine {
        Some(engine) => engine(&verb),
        None => Err(worker_program::take_over()),
    }
}
