//! The one table of exit codes. Schedulers act on these numbers, so they never change meaning.

/// Why a `cordee` process ended, as the number its parent sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Finished what it was asked to do.
    Done = 0,
    /// The run failed; a retry may help.
    Failed = 1,
    /// Wrong usage or an invalid config; a retry cannot help.
    Usage = 2,
    /// The environment is not fit: no room on the disk, a missing library, a failed smoke test.
    Environment = 3,
    /// Training diverged: a loss or gradient that is not a number.
    Diverged = 4,
    /// Stopped on request, with a checkpoint written: start me again.
    Requeue = 75,
    /// A retry is known to be useless: do not requeue.
    DoNotRequeue = 93,
    /// This node is bad: run me elsewhere.
    BadNode = 94,
    /// A rank hung and was stopped.
    Hang = 95,
    /// Not every rank arrived in time.
    RendezvousTimeout = 96,
}

impl ExitCode {
    /// Every code, in ascending order; the reference page is made from it.
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Environment,
        Self::Diverged,
        Self::Requeue,
        Self::DoNotRequeue,
        Self::BadNode,
        Self::Hang,
        Self::RendezvousTimeout,
    ];

    /// The number a parent process sees.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The code behind a number, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|exit| i32::from(exit.code()) == code)
    }

    /// What the code means, in a few words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "run failed, a retry may help",
            Self::Usage => "usage or config",
            Self::Environment => "environment, doctor or smoke failed",
            Self::Diverged => "diverged",
            Self::Requeue => "stopped on request with a checkpoint, requeue me",
            Self::DoNotRequeue => "do not requeue",
            Self::BadNode => "this node is bad",
            Self::Hang => "hang",
            Self::RendezvousTimeout => "rendezvous timed out",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ExitCode;

    #[test]
    fn every_code_is_found_by_its_number() {
        for exit in ExitCode::ALL {
            assert_eq!(ExitCode::from_code(i32::from(exit.code())), Some(exit));
        }
        assert_eq!(ExitCode::from_code(5), None);
    }
}
