//! What became of a run, from what its processes left behind.

use std::fmt;

use cordee_metrics::{AttemptEvent, EventKind, Outcome, RunState};
use serde::Serialize;

use super::RunRecord;
use crate::run_dir::RunDir;

/// A status of another machine that is older than this tells of a launcher that is gone, in seconds:
/// it is written every second.
const FRESH_S: f64 = 30.0;

/// Whether the launcher of a run is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Launcher {
    /// It holds the run.
    Alive,
    /// Nobody does.
    Gone,
    /// It was started on another machine, whose locks need not be seen here, or there are no locks.
    Unknown,
}

impl Launcher {
    /// Looks for the launcher of a run that was started on `host`.
    pub(super) fn find(run: &RunDir, host: &str) -> Self {
        let here = rustix::system::uname();
        if here.nodename().to_string_lossy() != host {
            return Self::Unknown;
        }
        match run.is_locked() {
            Some(true) => Self::Alive,
            Some(false) => Self::Gone,
            None => Self::Unknown,
        }
    }

    /// As JSON has it.
    pub(crate) fn is_alive(self) -> Option<bool> {
        match self {
            Self::Alive => Some(true),
            Self::Gone => Some(false),
            Self::Unknown => None,
        }
    }
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Its ranks run, or are about to.
    Running,
    /// Its ranks were asked to stop.
    Stopping,
    /// A rank failed, and the next attempt is on its way.
    Restarting,
    /// It did its last step.
    Done,
    /// It stopped on request, with a checkpoint.
    Stopped,
    /// It was stopped at once.
    Interrupted,
    /// It gave up.
    Failed,
    /// Its launcher is gone and said nothing of an end.
    Lost,
}

impl Standing {
    /// Whether a launcher is at work.
    pub(crate) fn is_under_way(self) -> bool {
        matches!(self, Self::Running | Self::Stopping | Self::Restarting)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl From<Outcome> for Standing {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Stopped => Self::Stopped,
            Outcome::Interrupted => Self::Interrupted,
            Outcome::Failed => Self::Failed,
            Outcome::Lost => Self::Lost,
        }
    }
}

impl RunRecord {
    /// How the run stands.
    pub(crate) fn standing(&self) -> Standing {
        let state = self.status.as_ref().map(|it| it.state);
        let is_at_work = match self.launcher {
            // What follows the last word of an attempt is the launcher's own end.
            Launcher::Alive => state != Some(RunState::Ended) || !self.has_ended(),
            Launcher::Gone => false,
            Launcher::Unknown => {
                let fresh = self.status_age().is_some_and(|age| age < FRESH_S);
                fresh && state != Some(RunState::Ended)
            }
        };
        if is_at_work {
            return match state {
                Some(RunState::Stopping) => Standing::Stopping,
                Some(RunState::Restarting) => Standing::Restarting,
                Some(RunState::Running | RunState::Ended) | None => Standing::Running,
            };
        }
        match self.attempts.last().map(|it| &it.event) {
            Some(AttemptEvent::Ended { outcome, .. }) => (*outcome).into(),
            Some(AttemptEvent::Started { .. }) => Standing::Lost,
            None => self.by_events(),
        }
    }

    /// Whether the last start that is known of has come to its end.
    fn has_ended(&self) -> bool {
        self.attempts.last().is_some_and(|it| {
            let ended = matches!(it.event, AttemptEvent::Ended { .. });
            ended && it.attempt >= self.environment.attempt
        })
    }

    /// How a run ended that kept no record of its attempts.
    fn by_events(&self) -> Standing {
        let end = self.events.iter().rev().find_map(|it| match it.event {
            EventKind::Finished { .. } => Some(Standing::Done),
            EventKind::Stopped { .. } => Some(Standing::Stopped),
            EventKind::Failed { .. } => Some(Standing::Failed),
            EventKind::RunStarted { .. } | EventKind::Resumed { .. } => Some(Standing::Lost),
            _ => None,
        });
        end.unwrap_or(Standing::Lost)
    }
}
