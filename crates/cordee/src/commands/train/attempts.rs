//! A run over all of its attempts: ranks are started, and started again from the newest checkpoint
//! where they failed and that may help.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, anyhow};
use cordee_config::Plan;
use cordee_data::Corpus;
use cordee_launch::{
    Decision, FailureReport, Launch, Observer, Outcome, RestartPolicy, Restarts, StopRequests,
    rendezvous::{Member, NodeInfo, NodeState},
};
use cordee_metrics::{
    AttemptEvent, EVENTS_FILE, Event, EventKind, Ledger, METRICS_FILE, Outcome as Recorded,
    RunState, append_event, last_step,
};
use cordee_protocol::ExitCode;

use super::{
    agent_page::AgentPage,
    board::{Attempt, Board},
    ledger::Standing,
    records::{self, Records},
    station::{Assignment, Offer, Station, assignments},
    watching::{Started, Watching},
};
use crate::{
    commands::{
        nodes::{self, Crew, Part},
        ranks::{self, Show},
        resume::Course,
    },
    console::Console,
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
    /// What whoever watches the launcher is shown.
    pub(super) page: Arc<AgentPage>,
    /// The other nodes, if there may be some.
    pub(super) crew: Option<Crew>,
    /// The plan for so many ranks.
    pub(super) plan_for: &'a (dyn Fn(usize) -> Result<Plan, Failure> + Sync),
}

/// An attempt, about to start.
struct Ready {
    launch: Launch,
    board: Board,
    /// The nodes, where there may be several.
    parts: Vec<Part>,
}

/// The attempts so far.
struct Supervisor<'a> {
    training: Training<'a>,
    show: Show,
    records: Records,
    restarts: Restarts,
    station: Station<'a>,
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
        (station, mut console): (Station<'_>, Console),
    ) -> Result<u8, Failure> {
        let (records, ledger) = Records::open(self.run, &mut console);
        let config = &self.plan.config.launch;
        let policy = RestartPolicy {
            restarts: config.max_restarts,
            window: config.restart_window.0,
        };
        let supervisor = Supervisor {
            station,
            show: Show(console),
            records,
            restarts: Restarts::new(policy),
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
    fn run(mut self, course: Course) -> Result<u8, Failure> {
        match self.last_attempt(course) {
            Ok((outcome, decision)) => self.end(outcome, decision),
            Err(failure) => {
                // The other nodes would look for this one, and take it for a reason to start again.
                if let Some(crew) = self.training.crew.take() {
                    crew.finish(failure.code, &failure.to_string());
                }
                Err(failure)
            }
        }
    }

    /// Attempts, until there is one after which no other is made.
    fn last_attempt(&mut self, mut course: Course) -> Result<(Outcome, Option<Decision>), Failure> {
        let memory = gpus::MemoryInUse::of(self.training.plan.device);
        loop {
            match self.attempt(&course)? {
                (Outcome::Failed(report), Some(Decision::Restart { counted })) => {
                    self.tell_restart(&report, counted);
                }
                last => return Ok(last),
            }
            // What the dead had of a GPU's memory is free a while after they are gone.
            if let Some(late) = memory.wait(&self.training.stop) {
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
    fn attempt(&mut self, course: &Course) -> Result<(Outcome, Option<Decision>), Failure> {
        let resumed = course.step();
        let checkpoint = course
            .checkpoint
            .as_ref()
            .map(|path| path.display().to_string());
        let Some(Ready {
            launch,
            board,
            parts,
        }) = self.prepare(course)?
        else {
            return Ok((Outcome::Stopped, None));
        };
        let started = Started {
            attempt: self.number,
            host: self.station.host.clone(),
            hosts: parts.iter().map(|part| part.host.clone()).collect(),
            ranks: launch.ranks,
            checkpoint,
        };
        let board = Arc::new(board);
        let mut watching = Watching {
            show: &mut self.show,
            records: &mut self.records,
            board: &board,
            page: &self.training.page,
            started: Some(started),
            remarks: Vec::new(),
            step: resumed.unwrap_or(0),
            checkpoint: resumed,
        };
        let stop = &self.training.stop;
        let outcome = match &self.training.crew {
            None => ranks::see_through(&launch, &mut watching, stop)?,
            Some(crew) => {
                let look = || board.look();
                let tell = |nodes: &[NodeState]| board.tell_of(nodes);
                let run = (&launch, &mut watching as &mut dyn Observer);
                crew.see_through(parts.clone(), run, stop, (&look, &tell))?
            }
        };
        let (step, checkpoint) = (watching.step, watching.checkpoint);
        // Asked before any rank was started: nothing is lost, and there is nothing to write down.
        if board.pids().is_empty() && self.training.stop.count() == 1 {
            return Ok((Outcome::Stopped, None));
        }
        let outcome = match outcome {
            // A node was asked before its ranks were there, and nobody insisted.
            Outcome::Interrupted if self.training.stop.count() == 1 => Outcome::Stopped,
            outcome => outcome,
        };
        let decision = self.decide(&outcome, checkpoint);
        self.blame(&outcome, &parts);
        self.close(&outcome, decision.as_ref(), (&board, &parts), step);
        Ok((outcome, decision))
    }

    /// Everything that an attempt needs before its ranks start; nothing, if somebody asked to stop before
    /// all nodes were there.
    fn prepare(&mut self, course: &Course) -> Result<Option<Ready>, Failure> {
        loop {
            let listeners = match &self.training.crew {
                None => Vec::new(),
                Some(_) => self.station.listen()?,
            };
            let Some(members) = self.gather(&listeners)? else {
                return Ok(None);
            };
            let alone = self.alone(course, &members)?;
            let (assignment, parts) = if members.is_empty() {
                (alone, Vec::new())
            } else {
                let mut all = assignments(&alone, &members)?;
                let values = all.iter().map(nodes::to_value).collect::<Result<_, _>>()?;
                let crew = self
                    .training
                    .crew
                    .as_ref()
                    .context("members are of a crew")?;
                if !crew.start_all(values)? {
                    // One of them is gone again.
                    continue;
                }
                (all.swap_remove(0), nodes::parts(&members))
            };
            let secret = self.training.crew.as_ref().map(Crew::secret);
            let (launch, pages) = self.station.launch(assignment, listeners, secret)?;
            let board = Board::new(Attempt {
                run_dir: self.training.run.path().to_owned(),
                number: self.number,
                steps: self.training.last_step,
                host: self.station.host.clone(),
                devices: self.station.devices.clone(),
                pages,
                before: self.since.elapsed(),
                after_failure: self.after_failure,
                stop: self.training.stop.clone(),
                page: Arc::clone(&self.training.page),
            });
            return Ok(Some(Ready {
                launch,
                board,
                parts,
            }));
        }
    }

    /// The nodes of the attempt: none where there is this one alone.
    fn gather(&mut self, listeners: &[TcpListener]) -> Result<Option<Vec<Member>>, Failure> {
        let Training {
            crew: Some(crew),
            plan_for,
            stop,
            ..
        } = &mut self.training
        else {
            return Ok(Some(Vec::new()));
        };
        let port = |listener: &TcpListener| listener.local_addr().map(|it| it.port());
        let ports: Result<Vec<u16>, _> = listeners.iter().map(port).collect();
        let addresses = crew.addresses().iter();
        let addresses = addresses.filter_map(|it| Some(it.parse::<SocketAddr>().ok()?.ip()));
        let offer = nodes::to_value(&Offer {
            addresses: addresses.collect(),
            ports: ports.context("looking where ranks listen")?,
        })?;
        let plan_for = *plan_for;
        let fits =
            |nodes: &[&NodeInfo]| plan_for(nodes.iter().map(|node| node.workers).sum()).is_ok();
        crew.gather(&offer, &fits, stop)
    }

    /// What this node would do if it were alone, but with the plan for the ranks of all.
    fn alone(&mut self, course: &Course, members: &[Member]) -> Result<Assignment, Failure> {
        let Training { run, plan, .. } = self.training;
        let mut plan = plan.clone();
        if !members.is_empty() {
            let ranks = members.iter().map(|member| member.info.workers).sum();
            if ranks != plan.world_size {
                self.show.0.warning(&format!(
                    "{ranks} ranks in place of {}, on {} of {} nodes: the data comes in the same order, and sums are \
                     added up in another",
                    plan.world_size,
                    members.len(),
                    self.training.crew.as_ref().map_or(1, Crew::most),
                ));
                plan = (self.training.plan_for)(ranks)?;
            }
        }
        let job = Job::of(
            &plan,
            Task::Train(TrainTask {
                corpus: self.training.corpus.entry().to_owned(),
                run_dir: run.path().to_owned(),
                resume: course.checkpoint.clone(),
                last_step: self.training.last_step,
                furthest_step: last_step(&run.path().join(METRICS_FILE)).unwrap_or(0),
                warnings: course.warnings.clone(),
                plan: plan.clone(),
            }),
        );
        let name = run.path().file_name().unwrap_or_default();
        Ok(Assignment {
            job,
            ranks: vec![self.station.workers],
            node: 0,
            below: vec![Vec::new(); self.station.workers],
            attempt: self.number,
            name: name.to_string_lossy().into_owned(),
            log_dir: run.logs(),
            max_restarts: plan.config.launch.max_restarts,
        })
    }

    /// Takes note of the node that the failure was on.
    fn blame(&self, outcome: &Outcome, parts: &[Part]) {
        if let (Outcome::Failed(report), Some(crew)) = (outcome, &self.training.crew)
            && let Some(part) = records::guilty_part(report, parts)
        {
            crew.blame(part.node);
        }
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
    fn close(
        &mut self,
        outcome: &Outcome,
        decision: Option<&Decision>,
        (board, parts): (&Board, &[Part]),
        step: u64,
    ) {
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
            Outcome::Failed(report) => Some(records::failure(report, parts)),
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
        self.training.page.restarted();
        self.show.0.finish();
        self.show.0.failure(&format!(
            "{}\nrestarting from the newest checkpoint (restart {counted} of {} in {})",
            report.render(),
            launch.max_restarts,
            launch.restart_window,
        ));
    }

    /// The end of the last attempt, told to all nodes.
    fn end(mut self, outcome: Outcome, decision: Option<Decision>) -> Result<u8, Failure> {
        let crew = self.training.crew.take();
        let ended = self.conclude(outcome, decision);
        if let Some(crew) = crew {
            match &ended {
                Ok(code) => crew.finish(*code, "the run has ended"),
                Err(failure) => crew.finish(failure.code, &failure.to_string()),
            }
        }
        ended
    }

    fn conclude(&mut self, outcome: Outcome, decision: Option<Decision>) -> Result<u8, Failure> {
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
