//! The real binary, run as a person would run it.

#![expect(clippy::unwrap_used, reason = "a test panics where something is wrong")]
#![expect(clippy::print_stdout, reason = "a test that skips says so")]

mod bad_input;
mod bench;
mod chaos;
mod devices;
mod equality;
mod export;
mod fine_tuning;
mod fixture;
mod init_from;
mod interruption;
mod launch;
mod nodes;
mod output;
mod plan;
mod resume;
mod runs;
mod smoke;
mod survival;
mod verify;
