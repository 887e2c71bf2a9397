//! A run under faults: waiting for what it does, each wait with a deadline.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    disk::SmallDisk,
    hosts::Hosts,
    kind::FaultKind,
    launcher::{Launcher, Training},
    processes::{self, Handle},
    records::{Attempt, Ending, Records},
    schedule::{Fault, Shape},
};

/// How often it is looked at what the run does.
const TICK: Duration = Duration::from_millis(5);

/// What any wait is given beside the work that is waited for: other programs use this machine, too.
const SLACK: Duration = Duration::from_mins(1);

/// How many times as long as undisturbed work may take.
pub(super) const SLOWEST: u32 = 20;

/// Why a run is not gone on with.
#[derive(Debug)]
pub(super) enum Halt {
    /// The user wants it so.
    Interrupted,
    /// It does not do what it should.
    GivenUp(String),
}

impl From<String> for Halt {
    fn from(why: String) -> Self {
        Self::GivenUp(why)
    }
}

/// What became of a fault.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    /// The last step that was done when it was injected.
    pub(super) step: u64,
    /// What the run made of it.
    pub(super) words: String,
    /// Whether that is what it should have made of it.
    pub(super) right: bool,
    /// From the injection until all ranks trained again, or saved again.
    pub(super) recovery_s: Option<f64>,
}

/// How long things take when nothing disturbs them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// A step, with its share of everything else.
    pub(super) step: Duration,
    /// From the start to the end of the first step.
    pub(super) start: Duration,
    /// Bytes of a checkpoint.
    pub(super) checkpoint_bytes: u64,
}

impl Pace {
    /// What so many steps are given.
    pub(super) fn steps(self, steps: u64) -> Duration {
        SLACK + self.step * SLOWEST * u32::try_from(steps).unwrap_or(u32::MAX)
    }

    /// What a start is given.
    pub(super) fn restart(self) -> Duration {
        SLACK + self.start * SLOWEST
    }
}

/// A run, and what is needed to disturb it.
pub(super) struct Trial {
    pub(super) training: Training,
    pub(super) shape: Shape,
    pub(super) pace: Pace,
    /// Where its checkpoints lie, if that is a disk of ours.
    pub(super) disk: Option<SmallDisk>,
    /// What `strace` prints.
    pub(super) strace_log: PathBuf,
    pub(super) records: Records,
    pub(super) launcher: Option<Launcher>,
    /// The machines, where there are several; the launcher is the agent of the first.
    pub(super) hosts: Option<Hosts>,
    pub(super) interrupted: Arc<AtomicBool>,
    /// The last step that was done when the fault at hand was injected, and when that was.
    pub(super) hit: (u64, Instant),
}

impl Trial {
    /// Starts the run, on all hosts, or goes on with it.
    pub(super) fn start(&mut self, resume: bool) -> Result<(), Halt> {
        let first = self.hosts.as_ref().map(|hosts| hosts.host(0));
        let failed = |error| format!("it cannot be started: {error}");
        let started = self.training.start_on(first.as_ref(), resume);
        self.launcher = Some(started.map_err(failed)?);
        if let Some(hosts) = &mut self.hosts
            && !resume
        {
            hosts.start(&self.training).map_err(failed)?;
        }
        Ok(())
    }

    /// Whatever has to be started again by itself is. Whether anything runs beside the launcher.
    fn supervise(&mut self) -> Result<bool, Halt> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Halt::Interrupted);
        }
        match &mut self.hosts {
            None => Ok(false),
            Some(hosts) => Ok(hosts.supervise(&self.training)?),
        }
    }

    /// The processes that were started here and run.
    pub(super) fn own(&self) -> Vec<u32> {
        let others = self.hosts.as_ref().map_or_else(Vec::new, Hosts::pids);
        self.launcher
            .iter()
            .map(Launcher::pid)
            .chain(others)
            .collect()
    }

    /// The process of the agent of a host.
    pub(super) fn agent(&self, node: usize) -> Result<u32, Halt> {
        Ok(match &self.hosts {
            Some(hosts) if node > 0 => hosts.agent(node)?,
            _ => self.launcher.as_ref().ok_or("nothing runs")?.pid(),
        })
    }

    /// Injects a fault when it is due, and sees the run through it.
    pub(super) fn suffer(&mut self, fault: &Fault) -> Result<Verdict, Halt> {
        self.reach(fault.step)?;
        self.pause(self.pace.step.mul_f64(fault.pause))?;
        self.hit();
        let attempt = self.attempt()?;
        let (mut words, mut right) = match fault.kind {
            FaultKind::Kill if fault.host.is_some() => self.kill_on_host(fault)?,
            FaultKind::Stop if fault.host.is_some() => self.stop_on_host(fault)?,
            FaultKind::AgentKill => self.kill_agent(fault)?,
            FaultKind::NodeStop => self.stop_node(fault)?,
            FaultKind::LinkCut => self.cut_link(fault)?,
            FaultKind::Kill => self.kill(fault)?,
            FaultKind::Stop => self.stop(fault)?,
            FaultKind::LauncherKill => self.kill_launcher()?,
            FaultKind::FullDisk => self.full_disk()?,
            FaultKind::FailingFsync => self.failing_fsync(fault)?,
            FaultKind::SlowDisk => self.slow_disk(fault)?,
            FaultKind::CorruptedCheckpoint | FaultKind::HalfWrittenCheckpoint => {
                self.damaged_checkpoint(fault)?
            }
        };
        if fault.kind.takes_saves()
            && let Some(ending) = self.records.ending(attempt.number)
        {
            // Nothing of that may end an attempt.
            let why = ending.failure.map_or_else(String::new, |it| it.class);
            words = format!("{words}, and the attempt ended: {why}");
            right = false;
        }
        Ok(Verdict {
            step: self.hit.0,
            words,
            right,
            recovery_s: Some(self.hit.1.elapsed().as_secs_f64()),
        })
    }

    /// Notes that the fault is injected now. Of several times the last one counts.
    pub(super) fn hit(&mut self) {
        let step = self.records.last_step().map_or(0, |(step, _)| step);
        self.hit = (step, Instant::now());
    }

    /// Waits until the run is at its end.
    pub(super) fn finish(&mut self) -> Result<(), Halt> {
        let deadline = Instant::now() + self.pace.steps(self.shape.steps);
        loop {
            let others = self.supervise()?;
            let Some(launcher) = &mut self.launcher else {
                return Err(Halt::GivenUp("nothing runs".to_owned()));
            };
            if let Some(status) = launcher.ended() {
                if status.success() && !others {
                    self.launcher = None;
                    return Ok(());
                }
                if !status.success() {
                    self.launcher = None;
                    return Err(Halt::GivenUp(format!(
                        "after the last fault the launcher ended with {status}"
                    )));
                }
            }
            if Instant::now() > deadline {
                return Err(Halt::GivenUp(
                    "after the last fault the run did not come to its end".to_owned(),
                ));
            }
            thread::sleep(TICK);
        }
    }

    /// Waits until `look` sees something. `what` says what is waited for.
    pub(super) fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&mut Records) -> Option<T>,
    ) -> Result<T, Halt> {
        let begun = Instant::now();
        loop {
            self.supervise()?;
            // Before the look, so that what it did last is seen.
            let ended = self.launcher.as_mut().and_then(Launcher::ended);
            if let Some(seen) = look(&mut self.records) {
                return Ok(seen);
            }
            if ended.is_some_and(|status| status.success()) {
                return Err(Halt::GivenUp(format!(
                    "waiting for {what}, and the run is at its end"
                )));
            }
            if let Some(status) = ended {
                return Err(Halt::GivenUp(format!(
                    "waiting for {what}, and the launcher ended by itself with {status}"
                )));
            }
            if begun.elapsed() > patience {
                return Err(Halt::GivenUp(format!(
                    "waited for {what}, in vain for {} s",
                    patience.as_secs()
                )));
            }
            thread::sleep(TICK);
        }
    }

    /// Waits until a step is done.
    fn reach(&mut self, step: u64) -> Result<(), Halt> {
        let at = self.records.last_step().map_or(0, |(at, _)| at);
        let patience = self
            .pace
            .steps(step.saturating_sub(at) + 2 * self.shape.every);
        self.wait_for(&format!("step {step}"), patience, |records| {
            records.last_step().filter(|(at, _)| *at >= step)
        })
        .map(drop)
    }

    /// Lets some time pass.
    pub(super) fn pause(&mut self, time: Duration) -> Result<(), Halt> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.supervise()?;
            thread::sleep(TICK.min(time));
        }
        Ok(())
    }

    /// The attempt under way.
    pub(super) fn attempt(&mut self) -> Result<Attempt, Halt> {
        let attempt = self.records.last_attempt();
        Ok(attempt.ok_or("it is not on record which processes train")?)
    }

    /// A rank's process.
    pub(super) fn rank(&mut self, attempt: &Attempt, rank: usize) -> Result<Handle, Halt> {
        let per_host = self.shape.ranks_per_host();
        let agent = self.agent(rank / per_host)?;
        // The record has those of the first host only.
        let pid = if rank < per_host {
            attempt.pids.get(rank).copied()
        } else {
            let ranks = processes::children(agent);
            ranks.get(rank % per_host).map(|process| process.pid)
        };
        let pid = pid.ok_or_else(|| format!("it is not on record which process rank {rank} is"))?;
        Ok(Handle::open(pid, agent).map_err(|why| format!("rank {rank}: {why}"))?)
    }

    /// Waits until an attempt has ended, and returns how.
    pub(super) fn ending(&mut self, attempt: usize) -> Result<Ending, Halt> {
        let patience = self.pace.steps(1);
        self.wait_for("the verdict", patience, |records| records.ending(attempt))
    }

    /// Waits until an attempt after that one has done a step, and returns it. All ranks have a part in a step.
    pub(super) fn recovered(&mut self, after: usize) -> Result<Attempt, Halt> {
        let patience = self.pace.restart();
        let next = self.wait_for("the next attempt", patience, |records| {
            records
                .last_attempt()
                .filter(|attempt| attempt.number > after)
        })?;
        let started = next.time;
        self.wait_for("a step of the next attempt", patience, |records| {
            records.last_step().filter(|(_, time)| *time > started)
        })?;
        Ok(next)
    }

    /// Ends whatever of the run is there, and says who would not go.
    pub(super) fn end(&mut self) -> Result<(), String> {
        let pids = self
            .records
            .last_attempt()
            .map_or_else(Vec::new, |attempt| attempt.pids);
        if let Some(mut launcher) = self.launcher.take() {
            launcher.kill();
        }
        if let Some(hosts) = &mut self.hosts {
            hosts.kill();
        }
        let left = processes::wait_until_gone(&[], &pids).map(drop);
        processes::kill_strangers(&[]);
        left.map_err(|left| processes::names(&left))
    }
}

impl From<&str> for Halt {
    fn from(why: &str) -> Self {
        Self::GivenUp(why.to_owned())
    }
}
