//! What can be done to a run, and what a machine must allow for it.

use clap::ValueEnum;
use serde::Serialize;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultKind {
    /// A rank is killed.
    Kill,
    /// A rank is stopped, so that it hangs.
    Stop,
    /// The launcher is killed, and the run is resumed.
    LauncherKill,
    /// The disk of the checkpoints is full until a save was refused.
    FullDisk,
    /// A rank's fsync fails until a save was refused.
    FailingFsync,
    /// A rank's disk is slow during a save.
    SlowDisk,
    /// A byte of the newest checkpoint is another, and a rank is killed.
    CorruptedCheckpoint,
    /// The newest checkpoint has half a file, a save was cut short, and a rank is killed.
    HalfWrittenCheckpoint,
}

impl FaultKind {
    /// As it is shown.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::LauncherKill => "launcher kill",
            Self::FullDisk => "full disk",
            Self::FailingFsync => "failing fsync",
            Self::SlowDisk => "slow disk",
            Self::CorruptedCheckpoint => "corrupted checkpoint",
            Self::HalfWrittenCheckpoint => "half-written checkpoint",
        }
    }

    /// Whether it happens to one rank.
    pub(super) fn has_rank(self) -> bool {
        !matches!(self, Self::LauncherKill | Self::FullDisk)
    }

    /// Whether training goes on meanwhile, from save to save. Other faults take the run back instead, and any
    /// number of them fits into it.
    pub(super) fn takes_saves(self) -> bool {
        matches!(self, Self::FullDisk | Self::FailingFsync | Self::SlowDisk)
    }

    /// Whether a small disk must be mounted for it.
    pub(super) fn needs_mount(self) -> bool {
        self == Self::FullDisk
    }

    /// Whether a process must be traced for it.
    pub(super) fn needs_strace(self) -> bool {
        matches!(self, Self::FailingFsync | Self::SlowDisk)
    }
}
