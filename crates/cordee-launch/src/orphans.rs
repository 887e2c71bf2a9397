//! Processes that workers started and that lost their parent.
//!
//! A process that forks twice or outlives the worker that started it gets a new parent. The launcher
//! makes itself that parent (`PR_SET_CHILD_SUBREAPER` in prctl(2)), so that such processes become its
//! children, whom it can see, kill and reap. No tree of living processes is ever walked: a worker's
//! own children are the worker's business for as long as it lives, and walking a tree that changes
//! meanwhile ends in killing others.
//!
//! Not every child of ours is an orphan: the program that calls [`crate::run`] may have children of its
//! own, started before or meanwhile. A child is killed only on proof that it came from a worker:
//!
//! - a variable of the worker's environment that names this launcher, which every process inherits, or
//! - its process group is a worker's, or
//! - it is in the control group of a worker.
//!
//! One that hides all three (an empty environment, a session of its own, no control groups here) is
//! left alone. Of zombies, which have no environment, those are reaped too whose session is neither
//! ours nor their own: a child that we started ourselves cannot have another.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, child_subreaper, getpid, kill_process, set_child_subreaper, waitpid,
};

use crate::process::{Identity, Stat, children, rank_by_mark};
use crate::worker_group::WorkerGroups;

/// How long orphans may take to die of `SIGKILL`.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How often zombies are looked for while the workers run.
pub(crate) const REAP_EVERY: Duration = Duration::from_secs(1);

/// The orphans of one launch. Dropped, it kills and reaps those that are left.
#[derive(Debug)]
pub(crate) struct Orphans {
    identity: Option<Identity>,
    groups: Option<WorkerGroups>,
    /// Whether orphans become our children for the sake of this launch alone.
    adopting: bool,
    /// The workers, and when each started.
    workers: Vec<(u32, Option<u64>)>,
    /// Orphans that were seen alive, with their start and their rank if they told.
    known: HashMap<(u32, u64), Option<usize>>,
}

impl Orphans {
    /// Adopts orphans from here on.
    pub(crate) fn adopt(identity: Option<Identity>, groups: Option<WorkerGroups>) -> Self {
        // Who adopts must be able to see whom.
        let adopting = identity.is_some()
            && children().is_some()
            && child_subreaper().is_ok_and(|now| now.is_none())
            && set_child_subreaper(Some(getpid())).is_ok();
        Self {
            identity,
            groups,
            adopting,
            workers: Vec::new(),
            known: HashMap::new(),
        }
    }

    pub(crate) fn groups(&self) -> Option<&WorkerGroups> {
        self.groups.as_ref()
    }

    /// What the environment of a rank is to hold, so that what it starts is known as its.
    pub(crate) fn mark(&self, rank: usize) -> Option<String> {
        Some(self.identity?.mark(rank))
    }

    /// Takes note of a worker, which is not to be reaped here. The next rank's.
    pub(crate) fn add_worker(&mut self, pid: u32) {
        self.workers
            .push((pid, Stat::of(pid).map(|stat| stat.start)));
    }

    /// How many children of ours a worker that has just ended has left running.
    pub(crate) fn left_by(&mut self, rank: usize) -> usize {
        let worker = self.workers.get(rank).map(|(pid, _)| *pid);
        self.look()
            .into_iter()
            .filter(|(stat, of)| {
                !stat.is_zombie() && (*of == Some(rank) || Some(stat.group) == worker)
            })
            .count()
    }

    /// Reaps those that ended by themselves.
    pub(crate) fn reap(&mut self) {
        for (stat, _) in self.look() {
            if stat.is_zombie() {
                self.reap_one(&stat);
            }
        }
    }

    /// Kills and reaps all, and those that thereby become ours, until none is left or it takes too
    /// long. Only when all workers have ended.
    pub(crate) fn sweep(&mut self) {
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            let found = self.look();
            if found.is_empty() || Instant::now() > deadline {
                return;
            }
            for (stat, _) in found {
                // Its number is its own until it is reaped, and only we reap it.
                if !stat.is_zombie()
                    && let Some(pid) = Pid::from_raw(stat.pid.cast_signed())
                {
                    let _ = kill_process(pid, Signal::KILL);
                }
                self.reap_one(&stat);
            }
            sleep(Duration::from_millis(1));
        }
    }

    fn reap_one(&mut self, stat: &Stat) {
        let pid = Pid::from_raw(stat.pid.cast_signed());
        if let Ok(Some(_)) = waitpid(pid, WaitOptions::NOHANG) {
            self.known.remove(&(stat.pid, stat.start));
        }
    }

    /// Children of ours that came from workers, with the rank where it is known.
    fn look(&mut self) -> Vec<(Stat, Option<usize>)> {
        let Some(own) = self.identity else {
            return Vec::new();
        };
        let stats = children()
            .unwrap_or_default()
            .into_iter()
            .filter_map(Stat::of);
        let own_session = Stat::of_self().map(|stat| stat.session);
        let mut found = Vec::new();
        for stat in stats {
            let is_worker = |(pid, start): &(u32, Option<u64>)| {
                *pid == stat.pid && start.is_none_or(|start| start == stat.start)
            };
            if self.workers.iter().any(is_worker) {
                continue;
            }
            let key = (stat.pid, stat.start);
            if let Some(rank) = self.known.get(&key) {
                found.push((stat, *rank));
                continue;
            }
            let rank = rank_by_mark(stat.pid, &own);
            let in_worker_group = || {
                // One that leads such a group has been given the number after the worker.
                let leads = stat.pid == stat.group;
                !leads && self.workers.iter().any(|(pid, _)| *pid == stat.group)
            };
            let in_control_group = || {
                let groups = self.groups.as_ref();
                groups.is_some_and(|groups| groups.hold(stat.pid))
            };
            if rank.is_some() || in_worker_group() || in_control_group() {
                self.known.insert(key, rank);
                found.push((stat, rank));
            } else if stat.is_zombie()
                && stat.session != stat.pid
                && own_session.is_some_and(|own| own != stat.session)
            {
                found.push((stat, None));
            }
        }
        found
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        self.sweep();
        if self.adopting {
            let _ = set_child_subreaper(None);
        }
    }
}
