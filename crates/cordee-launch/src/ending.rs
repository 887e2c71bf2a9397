//! How a process ended, in words.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use cordee_protocol::ExitCode;
use serde::{Deserialize, Serialize};

/// How a worker process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It exited with this code.
    Exited(i32),
    /// A signal killed it.
    Killed {
        /// Number of the signal.
        signal: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
    /// The system did not say, which happens where `SIGCHLD` is ignored.
    Unknown,
}

/// What became of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It ended by itself.
    Ended(Ending),
    /// It was killed by the launcher, because the run was over.
    StoppedByLauncher,
    /// It was killed by the launcher and has not ended: it hangs in the kernel, in a driver or a file system.
    Unkillable,
}

impl Ending {
    pub(crate) fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Killed {
                signal,
                core_dumped: status.core_dumped(),
            },
            (None, None) => Self::Unknown,
        }
    }

    /// Whether it finished, or stopped on request with a checkpoint.
    pub fn is_orderly(self) -> bool {
        matches!(self.exit_code(), Some(ExitCode::Done | ExitCode::Requeue))
    }

    /// The code of our table that it exited with, if it is one.
    pub fn exit_code(self) -> Option<ExitCode> {
        match self {
            Self::Exited(code) => ExitCode::from_code(code),
            Self::Killed { .. } | Self::Unknown => None,
        }
    }

    /// Whether this signal killed it.
    pub fn is_signal(self, number: i32) -> bool {
        matches!(self, Self::Killed { signal, .. } if signal == number)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(code) => {
                write!(f, "exited with code {code}")?;
                ExitCode::from_code(code).map_or(Ok(()), |exit| write!(f, " ({})", exit.meaning()))
            }
            Self::Killed {
                signal,
                core_dumped,
            } => {
                match signal_name(signal) {
                    Some(name) => write!(f, "was killed by {name} (signal {signal})")?,
                    None => write!(f, "was killed by signal {signal}")?,
                }
                f.write_str(if core_dumped { ", core dumped" } else { "" })
            }
            Self::Unknown => f.write_str("ended in a way that the system did not report"),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(ending) => ending.fmt(f),
            Self::StoppedByLauncher => f.write_str("stopped by the launcher"),
            Self::Unkillable => {
                f.write_str("killed by the launcher but still there, stuck in the kernel")
            }
        }
    }
}

/// Names of the signals that end a process, with the numbers they have on `x86_64` and `aarch64` Linux (signal(7)).
pub(crate) fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        16 => "SIGSTKFLT",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        26 => "SIGVTALRM",
        27 => "SIGPROF",
        29 => "SIGIO",
        30 => "SIGPWR",
        31 => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_read_as_the_end_of_a_sentence() {
        let words = |ending: Ending| ending.to_string();
        assert_eq!(words(Ending::Exited(4)), "exited with code 4 (diverged)");
        assert_eq!(words(Ending::Exited(57)), "exited with code 57");
        let killed = |signal, core_dumped| Ending::Killed {
            signal,
            core_dumped,
        };
        assert_eq!(
            words(killed(11, false)),
            "was killed by SIGSEGV (signal 11)"
        );
        assert_eq!(
            words(killed(6, true)),
            "was killed by SIGABRT (signal 6), core dumped"
        );
        assert_eq!(words(killed(34, false)), "was killed by signal 34");
    }

    #[test]
    fn only_done_and_requeue_are_orderly() {
        for code in 0..=255 {
            assert_eq!(
                Ending::Exited(code).is_orderly(),
                code == 0 || code == 75,
                "{code}"
            );
        }
        assert!(
            !Ending::Killed {
                signal: 15,
                core_dumped: false
            }
            .is_orderly()
        );
    }
}
