//! A run over all of its attempts: ranks are started, and started again from the newest checkpoint
//! where they failed and that may help.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use anyhow::anyhow;
use cordee_config::Plan;
use cordee_data::Corpus;
use cordee_launch::{
    Deadlines, Decision, FailureReport, Launch, Outcome, Pages, Placement, RestartPolicy, Restarts,
    StepTimes, StopRequests, Watch,
};
use cordee_metrics::{
    AttemptEvent, EVENTS_FILE, Event, EventKind, Ledger, METRICS_FILE, Outcome as Recorded,
    RunState, append_event, last_step,
};
use cordee_protocol::ExitCode;

use super::{
    board::{Attempt, Board},
    ledger::Standing,
    records::{self, Records},
    watching::{Started, Watching},
};
use crate::{
    commands::{
        ranks::{self, Logs, Show},
        resume::Course,
    },
    console::Console,
    devices,
    failure::Failure,
    gpus,
    job::{Job, Task, TrainTask},
    run_dir::RunDir,
};

/// What is to be trained, the same in every attempt.
pub(super) struct Training<'a> {
    pub(super) run: &'a RunDir,
    pub(super) plan: &'a Plan,
    pub(super) corpus: &'a Corpus,
    pub(super) last_step: u64,
    pub(super) stop: StopRequests,
    /// When the launcher started.
    pub(super) begun: Instant,
}

/// The attempts so far.
struct Supervisor<'a> {
    training: Training<'a>,
    show: Show,
    records: Records,
    restarts: Restarts,
    times: Arc<Mutex<StepTimes>>,
    devices: Vec<String>,
    placement: Vec<Option<Placement>>,
    host: String,
    number: usize,
    /// When the last attempt ended.
    since: Instant,
    after_failure: bool,
    /// Of all attempts that are over.
    ledger: Ledger,
}

impl Training<'_> {
    /// Trains to the end, to a stop on request, or until a failure is final.
    pub(super) fn attempts(
        self,
        course: Course,
        number: usize,
        mut console: Console,
    ) -> Result<u8, Failure> {
        let (records, ledger) = Records::open(self.run, &mut console);
        let config = &self.plan.config.launch;
        let policy = RestartPolicy {
            restarts: config.max_restarts,
            window: config.restart_window.0,
        };
        let (placement, told) = devices::placement(self.plan.device, self.plan.world_size)?;
        if let Some(told) = told {
            console.note(&told);
        }
        let supervisor = Supervisor {
            placement,
            show: Show(console),
            records,
            restarts: Restarts::new(policy),
            times: Arc::default(),
            devices: devices::labels(self.plan.device, self.plan.world_size)?,
            host: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            number,
            since: self.begun,
            after_failure: false,
            ledger,
            training: self,
        };
        supervisor.run(course)
    }
}

impl Supervisor<'_> {
    fn run(mut self, mut course: Course) -> Result<u8, Failure> {
        let memory = gpus::MemoryInUse::of(self.training.plan.device);
        loop {
            let (outcome, decision) = self.attempt(course)?;
            match (outcome, decision) {
                (Outcome::Failed(report), Some(Decision::Restart { counted })) => {
                    self.tell_restart(&report, counted);
                }
                (outcome, decision) => return self.end(outcome, decision),
            }
            // What the dead had of a GPU's memory is free a while after they are gone.
            if let Some(late) = memory.wait() {
                self.show.0.warning(&late);
            }
            course = self.next_course()?;
        }
    }

    /// Where the next attempt goes on.
    fn next_course(&mut self) -> Result<Course, Failure> {
        let training = &self.training;
        let mut course = Course::find(training.run, None, training.plan, training.corpus)?;
        course.take(training.run)?;
        for warning in &course.warnings {
            self.show.0.warning(warning);
        }
        self.number += 1;
        if let Err(error) = training.run.note_attempt(self.number) {
            let text = format!("the number of the attempt is not on record: {error:#}");
            self.show.0.warning(&text);
        }
        Ok(course)
    }

    /// One attempt, from the start of its ranks to the end of the last.
    fn attempt(&mut self, course: Course) -> Result<(Outcome, Option<Decision>), Failure> {
        let resumed = course.step();
        let started = Started {
            attempt: self.number,
            host: self.host.clone(),
            ranks: self.training.plan.world_size,
            checkpoint: course
                .checkpoint
                .as_ref()
                .map(|path| path.display().to_string()),
        };
        let (launch, board) = self.prepare(course)?;
        let board = Arc::new(board);
        let mut watching = Watching {
            show: &mut self.show,
            records: &mut self.records,
            board: &board,
            started: Some(started),
            remarks: Vec::new(),
            step: resumed.unwrap_or(0),
            checkpoint: resumed,
        };
        let outcome = ranks::see_through(&launch, &mut watching, &self.training.stop)?;
        let (step, checkpoint) = (watching.step, watching.checkpoint);
        // Asked before any rank was started: nothing is lost, and there is nothing to write down.
        if board.pids().is_empty() && self.training.stop.count() == 1 {
            return Ok((Outcome::Stopped, None));
        }
        let decision = self.decide(&outcome, checkpoint);
        self.close(&outcome, decision.as_ref(), &board, step);
        Ok((outcome, decision))
    }

    /// Everything that an attempt needs before its ranks start.
    fn prepare(&self, course: Course) -> Result<(Launch, Board), Failure> {
        let Training {
            run, plan, corpus, ..
        } = self.training;
        let job = Job::of(
            plan,
            Task::Train(TrainTask {
                plan: plan.clone(),
                corpus: corpus.entry().to_owned(),
                run_dir: run.path().to_owned(),
                resume: course.checkpoint,
                last_step: self.training.last_step,
                furthest_step: last_step(&run.path().join(METRICS_FILE)).unwrap_or(0),
                warnings: course.warnings,
            }),
        );
        let name = run.path().file_name().unwrap_or_default();
        let logs = Logs {
            dir: run.logs(),
            attempt: self.number,
        };
        let pages = Pages::new(plan.world_size)
            .map_err(|error| Failure::new(ExitCode::Environment, error))?;
        let board = Board::new(Attempt {
            run_dir: run.path().to_owned(),
            number: self.number,
            steps: self.training.last_step,
            host: self.host.clone(),
            devices: self.devices.clone(),
            pages: pages.all(),
            before: self.since.elapsed(),
            after_failure: self.after_failure,
            stop: self.training.stop.clone(),
        });
        let launch = Launch {
            devices: self.devices.clone(),
            placement: self.placement.clone(),
            max_restarts: plan.config.launch.max_restarts,
            pages: Some(pages),
            watch: Some(Watch {
                deadlines: Deadlines {
                    step: plan.config.launch.step_timeout.0,
                    phase: plan.config.launch.phase_timeout.0,
                },
                times: Arc::clone(&self.times),
            }),
            ..ranks::launch_of(&job, &name.to_string_lossy(), logs)?
        };
        Ok((launch, board))
    }

    /// What is done about an attempt that failed.
    fn decide(&mut self, outcome: &Outcome, checkpoint: Option<u64>) -> Option<Decision> {
        let Outcome::Failed(report) = outcome else {
            return None;
        };
        Some(if self.training.stop.count() > 0 {
            Decision::GiveUp {
                code: report.exit_code,
                why: "the run was asked to stop".to_owned(),
            }
        } else {
            self.restarts.decide(Instant::now(), report, checkpoint)
        })
    }

    /// Writes down how an attempt ended.
    fn close(&mut self, outcome: &Outcome, decision: Option<&Decision>, board: &Board, step: u64) {
        let (standing, recorded) = match outcome {
            Outcome::Done => (Standing::Ended, Recorded::Done),
            Outcome::Stopped => (Standing::Ended, Recorded::Stopped),
            Outcome::Interrupted => (Standing::Failed, Recorded::Interrupted),
            Outcome::Failed(_) => (Standing::Failed, Recorded::Failed),
        };
        let ledger = board.ledger(standing);
        let (state, decision) = match decision {
            Some(Decision::Restart { .. }) => (RunState::Restarting, Some("restart".to_owned())),
            Some(Decision::GiveUp { why, .. }) => (RunState::Ended, Some(why.clone())),
            None => (RunState::Ended, None),
        };
        let failure = match outcome {
            Outcome::Failed(report) => Some(records::failure(report, &self.devices)),
            _ => None,
        };
        board.finish(state, ledger);
        self.ledger += ledger;
        self.since = Instant::now();
        self.after_failure = standing == Standing::Failed;
        let ended = AttemptEvent::Ended {
            outcome: recorded,
            step,
            failure,
            decision,
            ledger,
        };
        self.records.push(self.number, ended, &mut self.show.0);
    }

    fn tell_restart(&mut self, report: &FailureReport, counted: usize) {
        let launch = &self.training.plan.config.launch;
        self.show.0.finish();
        self.show.0.failure(&format!(
            "{}\nrestarting from the newest checkpoint (restart {counted} of {} in {})",
            report.render(),
            launch.max_restarts,
            launch.restart_window,
        ));
    }

    /// The end of the last attempt.
    fn end(mut self, outcome: Outcome, decision: Option<Decision>) -> Result<u8, Failure> {
        let console = &mut self.show.0;
        console.finish();
        if self.ledger != Ledger::default() {
            console.goodput(&self.ledger, self.number);
        }
        match outcome {
            Outcome::Done => Ok(ExitCode::Done.code()),
            Outcome::Stopped => {
                console.note("stopped on request; go on with --resume");
                Ok(ExitCode::Requeue.code())
            }
            Outcome::Interrupted => Err(Failure::with_code(
                Outcome::Interrupted.exit_code(),
                anyhow!("interrupted at once; steps since the last checkpoint are lost"),
            )
            .with_hint("go on from the last checkpoint with --resume")),
            Outcome::Failed(report) => {
                record_failure(self.training.run, &report, console);
                let (code, why) = match decision {
                    Some(Decision::GiveUp { code, why }) => (code, why),
                    _ => (report.exit_code, String::new()),
                };
                let text = report.render();
                let (text, hint) = match text.rsplit_once("\nhint: ") {
                    Some((text, hint)) => (text, Some(hint)),
                    None => (text.as_str(), None),
                };
                let failure = Failure::with_code(code, anyhow!("{text}\n  not restarted: {why}"));
                Err(match hint {
                    Some(hint) => failure.with_hint(hint),
                    None => failure,
                })
            }
        }
    }
}

/// Leaves the verdict in the record of the run. The ranks are gone, and with them who else writes it.
fn record_failure(run: &RunDir, report: &FailureReport, console: &mut Console) {
    let failed = EventKind::Failed {
        rank: report.guilty().unwrap_or(report.rank),
        reason: report.render(),
    };
    let event = Event::now(report.last_step.unwrap_or(0), failed);
    if let Err(error) = append_event(run.path(), &event) {
        console.warning(&format!("the failure is not in {EVENTS_FILE}: {error}"));
    }
}
