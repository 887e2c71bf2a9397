//! What can go wrong with a checkpoint, in words that name the file and the next thing to try.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Dtype;

/// Result of this crate's operations.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// Why a checkpoint was not planned, written, found or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A tensor that cannot be stored.
    #[error("tensor `{name}` cannot be stored: {reason}")]
    InvalidTensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Pieces that do not cover every tensor exactly once, or no writers.
    #[error("the plan does not fit: {reason}")]
    InvalidPlan {
        /// What does not fit.
        reason: String,
    },
    /// A writer that is not in the plan.
    #[error("writer {writer} is not in a plan for {writers} writers")]
    UnknownWriter {
        /// The writer, 0-based.
        writer: usize,
        /// Writers in the plan.
        writers: usize,
    },
    /// A block size outside the range.
    #[error(
        "a checksum cannot cover blocks of {block_size} bytes: expected {} to {} bytes",
        crate::record::MIN_BLOCK_SIZE,
        crate::record::MAX_BLOCK_SIZE
    )]
    InvalidBlockSize {
        /// Bytes asked for.
        block_size: u64,
    },
    /// The source did not give the bytes of a tensor.
    #[error("no bytes {offset} to {} of tensor `{tensor}` to write: {reason}", offset + len)]
    Source {
        /// The tensor.
        tensor: String,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// What the source said.
        reason: String,
    },
    /// No room on the file system (or none left of the quota).
    #[error(
        "no room for {path}: {needed} bytes are needed, {available} are free; \
         free some space or keep fewer checkpoints"
    )]
    NoSpace {
        /// The file to be written.
        path: PathBuf,
        /// Its size in bytes.
        needed: u64,
        /// Bytes free on the file system at that moment.
        available: u64,
    },
    /// Not every writer finished within the deadline.
    #[error(
        "no record of writers {missing:?} in {path} after {} s: the attempt cannot be committed; \
         look at the logs of these ranks",
        waited.as_secs_f64()
    )]
    WritersMissing {
        /// The temporary directory.
        path: PathBuf,
        /// Writers without a record, ascending.
        missing: Vec<usize>,
        /// How long the commit waited.
        waited: Duration,
    },
    /// A writer wrote for another plan than the one that is committed.
    #[error(
        "writer {writer} wrote for another plan ({path}): its tensors, shapes or number of writers differ"
    )]
    PlanDiffers {
        /// The writer.
        writer: usize,
        /// Its record.
        path: PathBuf,
    },
    /// Ranks that should hold the same bytes do not.
    #[error(
        "replicas differ at step {step}: {}; the run has silently lost its agreement, \
         so go on from the previous checkpoint",
        describe_groups(groups)
    )]
    ReplicasDiffer {
        /// The step of the attempt.
        step: u64,
        /// Each hash and the writers that hold it, the largest group first.
        groups: Vec<(String, Vec<usize>)>,
    },
    /// A file that is missing, has another length, or does not say what it should.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A block of a shard with other bytes than were written.
    #[error(
        "{path} is damaged: block {block} (bytes {offset} to {}) has checksum {found}, \
         {expected} was written; use an older checkpoint",
        offset + len
    )]
    BlockDiffers {
        /// The shard.
        path: PathBuf,
        /// Index of the block.
        block: u64,
        /// Its first byte in the file.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// Checksum in the manifest.
        expected: String,
        /// Checksum of what was read.
        found: String,
    },
    /// A tensor that the checkpoint does not hold.
    #[error("no tensor `{name}` in {path}")]
    UnknownTensor {
        /// The tensor.
        name: String,
        /// The checkpoint.
        path: PathBuf,
    },
    /// A range outside the tensor, or a buffer of the wrong size.
    #[error(
        "cannot read {bytes} bytes from element {start} of tensor `{name}`: \
         it has {elements} elements of {dtype:?}"
    )]
    InvalidRange {
        /// The tensor.
        name: String,
        /// First element asked for.
        start: u64,
        /// Size of the buffer.
        bytes: usize,
        /// Elements of the tensor.
        elements: u64,
        /// Its element type.
        dtype: Dtype,
    },
    /// A state that JSON would not give back.
    #[error("the state of step {step} cannot be stored: {reason}")]
    InvalidState {
        /// The step.
        step: u64,
        /// Why not.
        reason: String,
    },
}

impl CheckpointError {
    pub(crate) fn damaged(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

fn describe_groups(groups: &[(String, Vec<usize>)]) -> String {
    let words: Vec<_> = groups
        .iter()
        .map(|(hash, writers)| format!("writers {writers:?} hold {hash}"))
        .collect();
    words.join(", ")
}
