//! Ranks that look at things, watched: whoever does not answer in time is not waited for.

use std::{
    collections::VecDeque,
    io, iter,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use cordee_launch::{FailureReport, Observer, Outcome, StopRequests, Stream};
use cordee_protocol::{Check, CheckReport, ExitCode, Finding, StepProgress, WorkerMessage};

use crate::{
    commands::ranks::{self, Logs},
    failure::Failure,
    job::Job,
};

/// What a process may take to start, and to end.
const SLACK: Duration = Duration::from_secs(10);

/// How often clocks are looked at.
const TICK: Duration = Duration::from_millis(50);

/// What one rank is to tell, in order, and what it is called.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) of: Option<String>,
    pub(super) checks: Vec<Check>,
}

/// What ranks told, or why they did not.
pub(super) struct Told {
    pub(super) reports: Vec<CheckReport>,
    /// Of a job that trains.
    pub(super) steps: Vec<StepProgress>,
    /// Set where a rank gave up by itself.
    pub(super) failed: Option<Box<FailureReport>>,
}

/// Runs a job of ranks that are to tell so much, each check within its deadline and `patience`. What was
/// not told is unknown in the answer. An error is the user's wish to stop, or that nothing could be started.
pub(super) fn look(
    job: &Job,
    expected: &[Expected],
    patience: Option<Duration>,
) -> Result<Told, Failure> {
    let logs = tempfile::Builder::new()
        .prefix("cordee-logs-")
        .tempdir()
        .context("making a directory for logs")
        .map_err(|error| Failure::new(ExitCode::Environment, error))?;
    let place = Logs {
        dir: logs.path().to_owned(),
        attempt: 1,
    };
    let stop = ranks::stop_on_signals()?;
    let waiting = Arc::new(Mutex::new(Waiting::new(expected, patience)));
    let mut listener = Listener {
        waiting: Arc::clone(&waiting),
        told: Told {
            reports: Vec::new(),
            steps: Vec::new(),
            failed: None,
        },
    };
    let outcome = thread::scope(|scope| {
        scope.spawn(|| keep_time(&waiting, &stop));
        let outcome = ranks::start_until(job, "smoke", place, &mut listener, &stop);
        lock(&waiting).over = true;
        outcome
    });
    let waiting = lock(&waiting);
    let mut told = listener.told;
    let why = match outcome? {
        Outcome::Interrupted | Outcome::Stopped if waiting.late.is_none() => {
            return Err(Failure::with_code(
                Outcome::Interrupted.exit_code(),
                anyhow!("interrupted"),
            ));
        }
        Outcome::Failed(report) => {
            let why = reason(&report);
            told.failed = Some(report);
            why
        }
        _ => "the ranks ended without telling".to_owned(),
    };
    for (rank, (left, expected)) in waiting.left.iter().zip(expected).enumerate() {
        for (place, check) in left.iter().enumerate() {
            let why = match waiting.late {
                Some(late) if late == rank && place == 0 => {
                    format!(
                        "no answer within {} s",
                        check.deadline_within(patience).as_secs_f64()
                    )
                }
                Some(late) => format!("not looked at: rank {late} did not answer"),
                None => why.clone(),
            };
            told.reports.push(CheckReport {
                check: *check,
                of: expected.of.clone(),
                finding: Finding::Unknown { why },
            });
        }
    }
    Ok(told)
}

/// Why a rank ended, in a line.
pub(super) fn reason(report: &FailureReport) -> String {
    let said = report.failure.as_ref().map(|it| it.message.clone());
    let said = said.or_else(|| report.last_lines.last().cloned());
    let how = format!("rank {} {}", report.rank, report.ending);
    match said {
        Some(said) => format!("{how}: {said}"),
        None => how,
    }
}

/// What is still to come, and until when.
struct Waiting {
    left: Vec<VecDeque<Check>>,
    due: Vec<Instant>,
    patience: Option<Duration>,
    /// The rank that was waited for in vain.
    late: Option<usize>,
    over: bool,
}

impl Waiting {
    fn new(expected: &[Expected], patience: Option<Duration>) -> Self {
        let mut waiting = Self {
            left: expected.iter().map(|it| it.checks.clone().into()).collect(),
            due: vec![Instant::now(); expected.len()],
            patience,
            late: None,
            over: false,
        };
        let start = waiting.slack();
        for rank in 0..expected.len() {
            waiting.wind(rank);
            waiting.due[rank] += start;
        }
        waiting
    }

    fn slack(&self) -> Duration {
        self.patience.map_or(SLACK, |most| most.min(SLACK))
    }

    /// From now on the rank has the time of the check that comes next, or what it takes to end.
    fn wind(&mut self, rank: usize) {
        let next = self.left[rank].front();
        let next = next.map_or(Duration::ZERO, |check| check.deadline_within(self.patience));
        self.due[rank] = Instant::now() + next + self.slack();
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the ranks when one is late.
fn keep_time(waiting: &Mutex<Waiting>, stop: &StopRequests) {
    loop {
        thread::sleep(TICK);
        let mut waiting = lock(waiting);
        if waiting.over {
            return;
        }
        let now = Instant::now();
        if let Some(rank) = waiting.due.iter().position(|due| *due < now) {
            waiting.late = Some(rank);
            // The second request kills.
            iter::repeat_n((), 2).for_each(|()| stop.request());
            return;
        }
    }
}

/// Hears what ranks tell.
struct Listener {
    waiting: Arc<Mutex<Waiting>>,
    told: Told,
}

impl Observer for Listener {
    fn message(&mut self, rank: usize, message: WorkerMessage) {
        match message {
            WorkerMessage::Check(report) => {
                let mut waiting = lock(&self.waiting);
                if let Some(left) = waiting.left.get_mut(rank) {
                    left.retain(|check| *check != report.check);
                    waiting.wind(rank);
                }
                self.told.reports.push(report);
            }
            WorkerMessage::Step(step) => self.told.steps.push(step),
            _ => {}
        }
    }

    fn line(&mut self, _: usize, _: Stream, _: &str) {}

    fn lines_skipped(&mut self, _: usize, _: u64) {}

    fn log_failed(&mut self, _: usize, _: &Path, _: &io::Error) {}
}
