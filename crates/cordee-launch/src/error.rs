//! Why nothing could be started.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// A launch that did not get under way. Workers already started were killed and reaped.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// [`crate::run`] was called from another thread.
    #[error(
        "workers must be started by the main thread: they are set to die with the thread that \
         started them, and only the main thread lives as long as the process"
    )]
    NotMainThread,
    /// There is nothing to start.
    #[error("a launch needs at least one rank, and its world size is 0")]
    NoRanks,
    /// The directory of the logs, or one of them, cannot be used.
    #[error("cannot open the log {path}", path = path.display())]
    Log {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A worker cannot be started.
    #[error("cannot start rank {rank} as {program}", program = program.display())]
    Spawn {
        /// The rank.
        rank: usize,
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something that every launch needs.
    #[error(
        "cannot create {what} for rank {rank}: limits on open files or processes may be too low (`ulimit -n -u`)"
    )]
    Resource {
        /// A pipe or a thread.
        what: &'static str,
        /// The rank it was for.
        rank: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The launcher's own threads could not be started.
    #[error(
        "cannot start the launcher's supervision: limits on processes may be too low (`ulimit -u`)"
    )]
    Supervision {
        /// What the system said.
        source: io::Error,
    },
}

impl LaunchError {
    /// What to try next, where the system's answer tells.
    pub fn hint(&self) -> Option<&'static str> {
        let Self::Spawn {
            program, source, ..
        } = self
        else {
            return None;
        };
        match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::NotFound, _) if program.exists() => Some(
                "it is there, but what runs it is not: see its first line, or `file` for its loader",
            ),
            (io::ErrorKind::NotFound, _) => {
                Some("see whether the path is right; a name without a slash is looked for in PATH")
            }
            (io::ErrorKind::PermissionDenied, _) => Some(
                "see whether it is executable (`chmod +x`), and its file system not mounted with noexec",
            ),
            (_, Some(errno)) if errno == Errno::NOEXEC.raw_os_error() => Some(
                "it is no program for this machine: built for another processor, cut short, or a script \
                 without a first line that says what runs it",
            ),
            (_, Some(errno)) if errno == Errno::AGAIN.raw_os_error() => {
                Some("the limit on processes may be too low: `ulimit -u` before the start")
            }
            (io::ErrorKind::InvalidInput, _) => Some(
                "see whether the processors that it is to run on are among those that the launcher may use",
            ),
            _ => None,
        }
    }
}
