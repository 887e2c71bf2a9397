//! One worker: its process, what it started, and how it ended.

use std::path::PathBuf;
use std::process::Child;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::process::Stat;
use crate::reader::LastWords;
use crate::worker_group::WorkerGroup;
use crate::{Ending, Fate};

/// One worker.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) child: Child,
    pub(crate) pid: Pid,
    pub(crate) log: PathBuf,
    pub(crate) group: Option<WorkerGroup>,
    /// Processes that it had started and that still ran when it had ended.
    pub(crate) left: usize,
    /// What it did when it was killed.
    pub(crate) state: Option<char>,
    pub(crate) ended: Option<Ended>,
    pub(crate) words: Option<LastWords>,
    pub(crate) killed: bool,
    pub(crate) unkillable: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    pub(crate) order: usize,
    pub(crate) at: Instant,
    /// Killed by us, because the run was over.
    pub(crate) by_launcher: bool,
    /// A failure of its own.
    pub(crate) failed: bool,
}

impl Member {
    pub(crate) fn new(child: Child, log: PathBuf, group: Option<WorkerGroup>) -> Self {
        let pid = Pid::from_child(&child);
        Self {
            child,
            pid,
            log,
            group,
            left: 0,
            state: None,
            ended: None,
            words: None,
            killed: false,
            unkillable: false,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Asks the worker itself, not what it started: a data loader of its own must last until the
    /// step boundary.
    pub(crate) fn terminate(&self) {
        if self.ended.is_none() {
            let _ = kill_process(self.pid, Signal::TERM);
        }
    }

    pub(crate) fn kill(&mut self) {
        if self.ended.is_none() {
            self.killed = true;
            self.state = Stat::of(self.child.id()).map(|stat| stat.state);
            self.kill_started();
        }
    }

    /// Kills the worker, if it still runs, and what it started.
    fn kill_started(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        if let Some(group) = &self.group {
            group.kill();
        }
    }

    /// Collects the ending of a process that ended. What it started goes first: as long as it is not
    /// reaped, no other group can have its number.
    pub(crate) fn reap(&mut self) -> Ending {
        self.kill_started();
        self.child
            .wait()
            .map_or(Ending::Unknown, Ending::from_status)
    }

    pub(crate) fn fate(&self) -> Fate {
        match self.ended {
            Some(Ended {
                by_launcher: true, ..
            }) => Fate::StoppedByLauncher,
            Some(Ended { ending, .. }) => Fate::Ended(ending),
            None => Fate::Unkillable,
        }
    }
}

impl Drop for Member {
    /// A launch that fails half-way leaves nothing behind.
    fn drop(&mut self) {
        if self.ended.is_none() && !self.unkillable {
            self.reap();
        }
    }
}
