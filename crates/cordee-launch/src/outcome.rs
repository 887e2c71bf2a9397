//! How a run ended.

use cordee_protocol::ExitCode;

use crate::FailureReport;

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Every rank exited with 0.
    Done,
    /// Every rank exited with 0 or 75, at least one with 75: there is a checkpoint to go on from.
    Stopped,
    /// The workers were killed on request, or before they could stop in order; what was done since
    /// the last checkpoint is lost.
    Interrupted,
    /// A rank failed and the others were killed.
    Failed(Box<FailureReport>),
}

impl Outcome {
    /// The code the launcher should exit with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Done => ExitCode::Done.code(),
            Self::Stopped => ExitCode::Requeue.code(),
            // What a shell reports for a process that SIGINT (2) ended.
            Self::Interrupted => 128 + 2,
            Self::Failed(report) => report.exit_code,
        }
    }
}
