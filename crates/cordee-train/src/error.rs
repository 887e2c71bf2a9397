//! Why a rank gives up, and with which exit code.

use std::{borrow::Cow, path::PathBuf};

use cordee_checkpoint::CheckpointError;
use cordee_comm::{CommError, Operation};
use cordee_data::DataError;
use cordee_memory::MemoryError;
use cordee_metrics::MetricsError;
use cordee_model::ModelError;
use cordee_ops::OpError;
use cordee_protocol::ExitCode;

use crate::OutOfMemory;

/// An error that ends training in this rank.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An operator of the update refused.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A tensor could not be made of another.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// Memory could not be had or seen.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Ranks could not reach each other.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Metrics could not be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A GPU had no room.
    #[error("{0}")]
    OutOfMemory(Box<OutOfMemory>),
    /// Something is no longer a number.
    #[error("training diverged at step {step}: {what}")]
    Diverged {
        /// The step that was not done, or after which it was seen.
        step: u64,
        /// What is not finite.
        what: String,
    },
    /// Ranks that should hold the same bits do not.
    #[error("ranks do not hold the same weights and moments at step {step}: {why}")]
    ReplicasDiffer {
        /// Optimizer steps done.
        step: u64,
        /// Which ranks hold what.
        why: String,
    },
    /// A parameter that the loss does not depend on.
    #[error("parameter `{parameter}` received no gradient in the first step: {why}")]
    MissingGradient {
        /// Its name.
        parameter: String,
        /// What was seen.
        why: &'static str,
    },
    /// Nothing in the batch counts towards the loss.
    #[error(
        "step {step} has no trained token: the loss mask of its {samples} sequences is zero everywhere"
    )]
    NothingTrained {
        /// The step.
        step: u64,
        /// Sequences in the global batch.
        samples: usize,
    },
    /// A checkpoint of something else.
    #[error("{path} does not fit this run: {why}", path = path.display())]
    ForeignCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// A trace that cannot be replayed.
    #[error("{path}: {why}", path = path.display())]
    Trace {
        /// The file, or the trace's directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Checkpoints would not fit on the disk.
    #[error("no room for {checkpoints} checkpoints in {path}: {needed} bytes needed, {free} free", path = path.display())]
    NoRoom {
        /// Where they go.
        path: PathBuf,
        /// How many should fit.
        checkpoints: u64,
        /// Bytes they need.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// The last state could not be saved.
    #[error("the checkpoint of step {step} could not be written: {why}")]
    NotSaved {
        /// The step.
        step: u64,
        /// What happened.
        why: String,
    },
}

impl TrainError {
    /// The exit code that tells a scheduler what to do.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Diverged { .. } => ExitCode::Diverged,
            Self::ForeignCheckpoint { .. }
            | Self::NothingTrained { .. }
            | Self::Trace { .. }
            | Self::Model(ModelError::Weights { .. } | ModelError::File { .. }) => ExitCode::Usage,
            Self::NoRoom { .. }
            | Self::Memory(_)
            | Self::OutOfMemory(_)
            | Self::Op(OpError::Gpu { .. } | OpError::OutOfMemory { .. })
            | Self::Model(ModelError::Memory(_) | ModelError::Op(OpError::OutOfMemory { .. })) => {
                ExitCode::Environment
            }
            Self::Comm(CommError::Timeout { call, .. }) if call.operation == Operation::Join => {
                ExitCode::RendezvousTimeout
            }
            Self::Comm(CommError::Timeout { .. } | CommError::Stuck { .. }) => ExitCode::Hang,
            Self::Comm(CommError::NcclVersions { .. }) => ExitCode::Environment,
            _ => ExitCode::Failed,
        }
    }

    /// What to try, where that is not obvious.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        let hint = match self {
            Self::OutOfMemory(error) => return Some(error.hint().into()),
            Self::Diverged { .. } => Some(
                "lower `optimizer.lr`, lengthen `schedule.warmup_steps`, or resume from the last checkpoint with either changed",
            ),
            Self::MissingGradient { .. } => {
                Some("a segment's backward does not reach this parameter")
            }
            Self::ForeignCheckpoint { .. } => Some(
                "resume with the config and data the run began with, or choose another --run-dir",
            ),
            Self::NoRoom { .. } => Some("free some space, or choose another --run-dir"),
            Self::ReplicasDiffer { .. } => Some(
                "a rank's memory or processor is at fault, or processors of different kinds are mixed; go on from the last checkpoint with --resume",
            ),
            Self::Memory(_) | Self::Model(ModelError::Memory(_)) => {
                Some("this model needs more memory than there is")
            }
            Self::Comm(CommError::Timeout { .. }) => Some(
                "look into the log of the rank that did not arrive; parallel.timeout says how long to wait for it",
            ),
            Self::NotSaved { .. } => {
                Some("free some space, then resume with --resume: older checkpoints are untouched")
            }
            _ => None,
        };
        hint.map(Cow::Borrowed)
    }
}
