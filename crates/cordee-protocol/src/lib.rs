//! What launcher and worker say to each other: environment, exit codes, messages, the status page.
//!
//! A contract that outlives code: names and numbers here are read by schedulers, by scripts written
//! for other launchers and by older binaries. It must not know how either side does its work, and it
//! performs no I/O: reading the environment and writing to a pipe are the binary's business.

#![forbid(unsafe_code)]

mod check;
mod collective;
mod environment;
mod exit;
mod message;
mod report;
mod status;
mod wire;

pub use check::{Check, CheckReport, Finding};
pub use collective::{Collective, CollectiveReport};
pub use environment::{EnvironmentError, WorkerEnvironment, names};
pub use exit::ExitCode;
pub use message::{
    Banner, Evaluation, Failure, SourceEvaluation, StepProgress, Summary, WorkerMessage,
};
pub use report::{
    BenchCommunication, BenchGpu, BenchPart, BenchProduct, BenchReport, CollectiveFinding,
    CollectivesReport, LogitsDifference, OperatorFinding, OperatorsReport, TraceReport, TraceStep,
};
pub use status::{CallStatus, Phase, Status, StatusPage};
pub use wire::{
    Answering, CODE_BYTES, Dialing, HELLO_BYTES, Inbox, LENGTH_BYTES, Opener, PROOF_BYTES, Sealer,
    Secret, WELCOME_BYTES, WireError,
};
