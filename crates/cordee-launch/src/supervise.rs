//! Watches the workers to their end: signals, deadlines, verdict.
//!
//! Runs on a thread of its own, so that an observer that blocks delays neither a kill nor a stop
//! request. Only this thread signals and reaps workers; hence a process id is never used after it
//! may belong to another process.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use cordee_protocol::{ExitCode, StatusPage};

use crate::member::{Ended, Member};
use crate::notice::Notice;
use crate::orphans::{Orphans, REAP_EVERY};
use crate::out_of_memory::OutOfMemoryKills;
use crate::reader::LastWords;
use crate::verdict::{Suspect, culprit};
use crate::watchdog::{Expired, Watchdog};
use crate::{
    Ending, FailureReport, Fate, Hang, HungRank, OtherRank, Outcome, ProcessState, Silence,
    SilentRank, StopRequests, Watch,
};

/// From the first failure to the kill of the others: near-simultaneous failures tell what happened.
const WINDOW: Duration = Duration::from_millis(200);
/// The same while every rank that failed blames another. A process is gone for the launcher only when
/// the kernel has freed its memory and closed its devices; its peers see its sockets close before.
const VICTIMS_WINDOW: Duration = Duration::from_secs(2);
/// How long a worker may take to die of `SIGKILL`; one stuck in a driver may never.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long the logs may take to swallow what is left in the pipes once all workers ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Something the supervisor must know.
#[derive(Debug)]
pub(crate) enum Event {
    /// The process of a rank ended and waits to be reaped.
    Exited { local: usize },
    /// All that a rank said has been read.
    Drained { local: usize, words: LastWords },
    /// Someone asked to stop; [`StopRequests`] has the count.
    StopRequested,
    /// The thread that called [`crate::run`] gives up.
    Abandoned,
}

/// Watches all workers of this node. They are counted from 0 here; what is told of them, by rank.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) members: Vec<Member>,
    pub(crate) events: Receiver<Event>,
    pub(crate) notices: Sender<Notice>,
    pub(crate) stop: StopRequests,
    pub(crate) grace: Option<Duration>,
    pub(crate) started: Instant,
    pub(crate) host: String,
    /// The rank of the first member.
    pub(crate) first_rank: usize,
    pub(crate) out_of_memory: Option<OutOfMemoryKills>,
    pub(crate) devices: Vec<String>,
    /// Empty where there are none.
    pub(crate) pages: Vec<StatusPage>,
    pub(crate) watch: Option<Watch>,
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) log_dir: PathBuf,
    pub(crate) attempt: usize,
    /// That nothing happened any more.
    pub(crate) hang: Option<Box<Hang>>,
    /// Last, since dropping them takes that all workers have ended.
    pub(crate) orphans: Orphans,
}

/// How far a stop on request has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stopping {
    #[default]
    No,
    /// The workers were asked; past this time they are killed.
    Asked(Option<Instant>),
    /// They were killed.
    Killed,
}

impl Supervisor {
    /// Watches until every worker ended, and says how.
    pub(crate) fn run(mut self) -> Outcome {
        let mut stopping = Stopping::No;
        self.watchdog = self.watch.as_ref().map(|watch| {
            let times = watch.times.lock().unwrap_or_else(PoisonError::into_inner);
            Watchdog::new(watch.deadlines, times.clone(), self.pages.clone())
        });
        self.watch(&mut stopping);
        if let (Some(watch), Some(watchdog)) = (&self.watch, &self.watchdog) {
            let mut times = watch.times.lock().unwrap_or_else(PoisonError::into_inner);
            times.clone_from(watchdog.step_times());
        }
        self.members.iter_mut().for_each(Member::kill);
        self.collect();
        self.orphans.sweep();
        self.outcome(stopping)
    }

    /// Returns when all ended, or the rest is to be killed.
    fn watch(&mut self, stopping: &mut Stopping) {
        let mut first_failure = None;
        let mut window: Option<Instant> = None;
        while self.members.iter().any(|member| member.ended.is_none()) {
            let grace = if let Stopping::Asked(grace) = *stopping {
                grace
            } else {
                None
            };
            let look = self.watchdog.as_ref().map(Watchdog::next_look);
            match self.next([window, grace, look].into_iter().flatten().min()) {
                Some(Event::Exited { local }) => {
                    if !self.exited(local, *stopping).is_orderly() && window.is_none() {
                        first_failure = Some(Instant::now());
                        window = first_failure.map(|at| at + WINDOW);
                    }
                }
                Some(Event::Drained { local, words }) => self.members[local].words = Some(words),
                Some(Event::StopRequested) => match self.stop.count() {
                    0 => {}
                    1 => {
                        if *stopping == Stopping::No {
                            *stopping =
                                Stopping::Asked(self.grace.map(|grace| Instant::now() + grace));
                            self.ask_to_stop();
                        }
                    }
                    _ => *stopping = Stopping::Killed,
                },
                Some(Event::Abandoned) => *stopping = Stopping::Killed,
                None => {
                    let now = Instant::now();
                    let passed = |end: Option<Instant>| end.is_some_and(|end| end <= now);
                    if passed(grace) {
                        *stopping = Stopping::Killed;
                    } else if passed(window) {
                        let patient = first_failure.is_some_and(|at| at.elapsed() < VICTIMS_WINDOW);
                        if !(patient && self.only_victims()) {
                            return;
                        }
                        window = Some(now + WINDOW);
                    } else if window.is_none() {
                        self.hang = self.look(now);
                        if self.hang.is_some() {
                            return;
                        }
                    }
                }
            }
            if *stopping == Stopping::Killed {
                return;
            }
        }
    }

    /// Asks the workers to stop at their next step.
    fn ask_to_stop(&self) {
        if self.pages.is_empty() {
            self.members.iter().for_each(Member::terminate);
        }
        // The page reaches a worker that has no handler for the signal yet.
        self.pages.iter().for_each(StatusPage::request_stop);
    }

    /// Looks whether anything happens still; if not, finds who is to blame.
    fn look(&mut self, now: Instant) -> Option<Box<Hang>> {
        let members = &self.members;
        let state = |rank: usize| ProcessState::of(members[rank].child.id());
        let expired = self.watchdog.as_mut()?.look(now, state)?;
        let rank = |local: usize| {
            let (pid, device) = (
                self.members[local].child.id(),
                self.devices.get(local).cloned(),
            );
            let who = (self.first_rank + local, pid, device);
            HungRank::new(who, &self.host, self.pages[local].read())
        };
        let ranks = (0..self.members.len()).map(rank).collect();
        let quietest = self.first_rank + expired.rank;
        let file = self
            .log_dir
            .join(format!("hang-attempt-{:03}.json", self.attempt));
        let expired = Expired {
            rank: quietest,
            ..expired
        };
        let mut hang = Hang::of(expired, ranks, file);
        hang.look_into_the_guilty();
        hang.write();
        Some(Box::new(hang))
    }

    /// Waits until the killed ended and everything they said is in the logs, within limits.
    fn collect(&mut self) {
        let mut last_end = Instant::now();
        loop {
            let running = self.members.iter().any(|member| member.ended.is_none());
            let drained = self.members.iter().all(|member| member.words.is_some());
            let limit = if running { KILL_LIMIT } else { DRAIN_LIMIT };
            if drained && !running {
                return;
            }
            match self.next(Some(last_end + limit)) {
                Some(Event::Exited { local }) => {
                    self.exited(local, Stopping::Killed);
                    last_end = Instant::now();
                }
                Some(Event::Drained { local, words }) => self.members[local].words = Some(words),
                Some(Event::StopRequested | Event::Abandoned) => {}
                None => break,
            }
        }
        for member in self
            .members
            .iter_mut()
            .filter(|member| member.ended.is_none())
        {
            member.unkillable = true;
        }
    }

    /// The next event, or `None` at the deadline.
    fn next(&mut self, deadline: Option<Instant>) -> Option<Event> {
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let wait = left.map_or(REAP_EVERY, |left| left.min(REAP_EVERY));
            match self.events.recv_timeout(wait) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) if left == Some(wait) => return None,
                Err(RecvTimeoutError::Timeout) => self.orphans.reap(),
                Err(RecvTimeoutError::Disconnected) => return Some(Event::Abandoned),
            }
        }
    }

    fn exited(&mut self, local: usize, stopping: Stopping) -> Ending {
        let order = self
            .members
            .iter()
            .filter(|member| member.ended.is_some())
            .count();
        let member = &mut self.members[local];
        member.left = self.orphans.left_by(local);
        if let Some(group) = &member.group {
            // A zombie is not counted; what came in by a way that we do not see, is.
            member.left = member.left.max(group.processes());
        }
        let ending = member.reap();
        let by_launcher = member.killed && ending.is_signal(9);
        // A worker that dies of the request to stop had no handler yet. That is no fault, but it
        // leaves no checkpoint either.
        let by_request = stopping != Stopping::No && ending.is_signal(15);
        let failed = !(member.killed || by_request || ending.is_orderly());
        member.ended = Some(Ended {
            ending,
            order,
            at: Instant::now(),
            by_launcher,
            failed,
        });
        let _ = self.notices.send(Notice::Ended {
            rank: self.first_rank + local,
            ending,
            by_launcher,
        });
        ending
    }

    fn suspects(&self) -> Vec<Suspect<'_>> {
        let failed = self
            .members
            .iter()
            .enumerate()
            .filter_map(|(local, member)| {
                let ended = member.ended.filter(|ended| ended.failed)?;
                let failure = member
                    .words
                    .as_ref()
                    .and_then(|words| words.failure.as_ref());
                Some(Suspect {
                    rank: self.first_rank + local,
                    order: ended.order,
                    failure,
                })
            });
        failed.collect()
    }

    fn only_victims(&self) -> bool {
        let suspects = self.suspects();
        !suspects.is_empty() && suspects.iter().all(Suspect::is_victim)
    }

    fn outcome(&self, stopping: Stopping) -> Outcome {
        let orderly = |member: &Member| member.ended.is_some_and(|ended| ended.ending.is_orderly());
        if self.members.iter().all(orderly) {
            let done = self
                .members
                .iter()
                .all(|member| member.fate() == Fate::Ended(Ending::Exited(0)));
            return if done {
                Outcome::Done
            } else {
                Outcome::Stopped
            };
        }
        if let Some(hang) = self.hang.clone() {
            return Outcome::Failed(Box::new(self.report_hang(hang)));
        }
        match culprit(&self.suspects()) {
            Some(suspect) if stopping != Stopping::Killed || self.stop.is_over() => {
                Outcome::Failed(Box::new(self.report(suspect)))
            }
            _ => Outcome::Interrupted,
        }
    }

    /// The rank that `suspect` blames, or that the one it blames does, if it did not fail itself.
    fn silent(&self, suspect: Suspect<'_>) -> Option<SilentRank> {
        let blamed_by = |member: &Member| member.words.as_ref()?.failure.as_ref()?.blames;
        let mut rank = suspect.failure?.blames?;
        let member_of = |rank: usize| self.members.get(rank.checked_sub(self.first_rank)?);
        // Blame may go in a circle.
        for _ in 0..self.members.len() {
            match member_of(rank).and_then(blamed_by) {
                Some(next) => rank = next,
                None => break,
            }
        }
        // One of another node is for the others to find out about.
        let member = member_of(rank)?;
        let silence = match member.fate() {
            Fate::Ended(ending) if ending.is_orderly() => Silence::Left(ending),
            Fate::Ended(_) => return None,
            Fate::Unkillable => Silence::InKernel,
            Fate::StoppedByLauncher => match member.state {
                Some('T' | 't') => Silence::Stopped,
                Some('D') => Silence::InKernel,
                _ => Silence::Running,
            },
        };
        Some(SilentRank {
            rank,
            pid: member.child.id(),
            log: member.log.clone(),
            silence,
        })
    }

    fn report(&self, suspect: Suspect<'_>) -> FailureReport {
        FailureReport {
            failure: suspect.failure.cloned(),
            silent: self.silent(suspect),
            ..self.report_of(suspect.rank)
        }
    }

    fn report_hang(&self, hang: Box<Hang>) -> FailureReport {
        // If it is of another node, or nobody, any of this one.
        let here = self.first_rank..self.first_rank + self.members.len();
        let guilty = hang.guilty.first().copied();
        let rank = guilty
            .filter(|rank| here.contains(rank))
            .unwrap_or(self.first_rank);
        FailureReport {
            exit_code: ExitCode::Hang.code(),
            hang: Some(hang),
            ..self.report_of(rank)
        }
    }

    /// What there is to tell of any rank.
    fn report_of(&self, rank: usize) -> FailureReport {
        let member = &self.members[rank - self.first_rank];
        let words = member.words.as_ref();
        let ending = member.ended.map_or(Ending::Unknown, |ended| ended.ending);
        let others = (self.first_rank..)
            .zip(&self.members)
            .filter(|(other, _)| *other != rank);
        let kills = self.out_of_memory.as_ref();
        FailureReport {
            rank,
            host: self.host.clone(),
            pid: member.child.id(),
            device: self.devices.get(rank - self.first_rank).cloned(),
            ending,
            out_of_memory_kills: kills.map_or(0, OutOfMemoryKills::since_start),
            failure: None,
            hang: None,
            lost: None,
            silent: None,
            left: member.left,
            last_step: self
                .members
                .iter()
                .filter_map(|member| member.words.as_ref()?.step)
                .max(),
            ran_for: member
                .ended
                .map_or_else(Instant::now, |ended| ended.at)
                .duration_since(self.started),
            last_lines: words.map_or_else(Vec::new, |words| words.lines.clone()),
            log: member.log.clone(),
            exit_code: ending.exit_code().map_or(1, ExitCode::code),
            others: others
                .map(|(rank, member)| OtherRank {
                    rank,
                    pid: member.child.id(),
                    fate: member.fate(),
                })
                .collect(),
        }
    }
}
