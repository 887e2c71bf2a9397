//! What can go wrong with metrics. None of it is a reason to lose a step.

use std::io;
use std::path::PathBuf;

/// Why metrics could not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A file or folder could not be created, opened, cut or read; the source names it.
    #[error("metrics cannot be opened")]
    Open(#[source] io::Error),
    /// Lines wait in memory because their file takes none now.
    #[error(
        "{path}: {lines} line(s) are not on disk yet; they are kept in memory and tried again at \
         the next write, so free some space there before the run ends"
    )]
    Pending {
        /// The file.
        path: PathBuf,
        /// How many lines wait.
        lines: usize,
        /// What the file system said last.
        source: io::Error,
    },
    /// Lines are written, but the disk did not confirm them.
    #[error("{path}: lines may not survive a crash of this machine, because they did not sync")]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A line is not what its file holds.
    #[error("{path}:{line}: not a valid record")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The thread that writes has ended; this is a defect of cordee.
    #[error("the thread that writes metrics has ended before its run")]
    WriterGone,
}
