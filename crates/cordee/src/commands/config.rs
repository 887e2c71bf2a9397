//! `cordee config`: what a config says, once everything is resolved.

use cordee_config::Loaded;
use cordee_protocol::ExitCode;

use crate::{
    args::{ConfigArgs, ConfigCommand},
    console::Console,
    devices,
    failure::Failure,
};

pub(crate) fn run(command: &ConfigCommand) -> Result<u8, Failure> {
    match command {
        ConfigCommand::Show(args) => {
            let loaded = load(args)?;
            let plan = devices::plan(&loaded)?;
            Console::print_data(&loaded.show(&plan));
        }
        ConfigCommand::Check(args) => {
            devices::plan(&load(args)?)?;
            Console::print_data(&format!("{}: ok\n", args.config.display()));
        }
    }
    Ok(ExitCode::Done.code())
}

/// Reads the config and applies what was set on the command line.
pub fn load(args: &ConfigArgs) -> Result<Loaded, Failure> {
    cordee_config::load(&args.config, &args.sets).map_err(Failure::usage)
}
