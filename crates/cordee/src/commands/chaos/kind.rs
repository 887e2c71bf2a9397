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
    /// The launcher is killed, and the run is resumed; of several hosts, the first one's.
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
    /// The launcher of a host other than the first is killed, and started again.
    AgentKill,
    /// All that a host runs is stopped for longer than a host may be silent.
    NodeStop,
    /// A host's link is cut for longer than a host may be silent.
    LinkCut,
}

/// Faults of a run on one machine.
pub(super) const OF_ONE_MACHINE: [FaultKind; 8] = [
    FaultKind::Kill,
    FaultKind::Stop,
    FaultKind::LauncherKill,
    FaultKind::FullDisk,
    FaultKind::FailingFsync,
    FaultKind::SlowDisk,
    FaultKind::CorruptedCheckpoint,
    FaultKind::HalfWrittenCheckpoint,
];

/// Faults of a run on several hosts.
pub(super) const OF_HOSTS: [FaultKind; 6] = [
    FaultKind::Kill,
    FaultKind::Stop,
    FaultKind::LauncherKill,
    FaultKind::AgentKill,
    FaultKind::NodeStop,
    FaultKind::LinkCut,
];

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
            Self::AgentKill => "agent kill",
            Self::NodeStop => "node stop",
            Self::LinkCut => "link cut",
        }
    }

    /// Whether it happens to one rank.
    pub(super) fn has_rank(self) -> bool {
        !matches!(
            self,
            Self::LauncherKill | Self::FullDisk | Self::AgentKill | Self::NodeStop | Self::LinkCut
        )
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
