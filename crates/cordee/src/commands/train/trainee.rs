//! A node of a run that another one leads.

use std::{
    io,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, anyhow};
use cordee_config::DeviceKind;
use cordee_launch::{HungRank, Launch, Observer, StopRequests, Stream, rendezvous::Agent};
use cordee_metrics::{Ledger, RunState, RunStatus, unix_time};
use cordee_protocol::{ExitCode, StatusPage, WorkerMessage};
use serde_json::Value;

use super::{
    agent_page::{AgentPage, rank_status},
    station::{Assignment, Offer, Station},
};
use crate::{
    commands::{
        nodes::{Follow, Watching, to_value},
        ranks::Show,
    },
    failure::Failure,
    gpus::MemoryInUse,
    job::Task,
};

/// This node, and who reads what its ranks say.
pub(super) struct Trainee<'a> {
    station: Station<'a>,
    listening: Listening,
    /// For the coming attempt.
    listeners: Vec<TcpListener>,
    running: Running,
    page: Arc<AgentPage>,
    memory: MemoryInUse,
    stop: StopRequests,
}

/// The ranks of the attempt at hand.
#[derive(Default)]
struct Running {
    first_rank: usize,
    node: usize,
    attempt: usize,
    steps: u64,
    pages: Vec<StatusPage>,
}

impl<'a> Trainee<'a> {
    /// Before any rank is there.
    pub(super) fn new(
        station: Station<'a>,
        show: Show,
        page: Arc<AgentPage>,
        device: DeviceKind,
        stop: StopRequests,
    ) -> Self {
        Self {
            station,
            listening: Listening {
                show,
                pids: Arc::default(),
            },
            listeners: Vec::new(),
            running: Running::default(),
            page,
            memory: MemoryInUse::of(device),
            stop,
        }
    }
}

impl Trainee<'_> {
    /// The end of the job, as the first node told it.
    pub(super) fn end(mut self, code: u8, text: &str) -> Result<u8, Failure> {
        let console = &mut self.listening.show.0;
        console.finish();
        match ExitCode::from_code(i32::from(code)) {
            Some(ExitCode::Done | ExitCode::Requeue) => {
                console.note(text);
                Ok(code)
            }
            _ => Err(Failure::with_code(code, anyhow!("{text}"))),
        }
    }
}

impl Follow for Trainee<'_> {
    fn offer(&mut self, agent: &Agent) -> Result<Value, Failure> {
        // What ranks of an attempt before had of a GPU's memory is free a while after they are gone.
        if let Some(late) = self.memory.wait(&self.stop) {
            self.listening.show.0.warning(&late);
        }
        self.listeners = self.station.listen()?;
        let port = |listener: &TcpListener| listener.local_addr().map(|it| it.port());
        let ports: Result<Vec<u16>, _> = self.listeners.iter().map(port).collect();
        let ports = ports
            .context("looking where ranks listen")
            .map_err(|error| Failure::new(ExitCode::Environment, error))?;
        to_value(&Offer {
            addresses: vec![agent.local_address()],
            ports,
        })
    }

    fn launch(&mut self, assignment: Value, agent: &Agent) -> Result<Launch, Failure> {
        let mut assignment: Assignment = serde_json::from_value(assignment)
            .context("reading what this node is to do")
            .map_err(|error| Failure::new(ExitCode::Failed, error))?;
        if assignment.node == 1 {
            // The first node has many addresses, of which one is known to be the right one.
            let known = agent.coordinator().ip();
            for places in &mut assignment.below {
                if let Some(place) = places.first().copied() {
                    places.insert(0, (known, place.port()).into());
                }
            }
        }
        (self.running.node, self.running.attempt) = (assignment.node, assignment.attempt);
        if let Task::Train(task) = &assignment.job.task {
            self.running.steps = task.last_step;
        }
        self.running.first_rank = assignment.ranks[..assignment.node].iter().sum();
        let listeners = std::mem::take(&mut self.listeners);
        let (launch, pages) = self
            .station
            .launch(assignment, listeners, Some(agent.secret()))?;
        self.running.pages = pages;
        self.listening.pids = Arc::default();
        Ok(launch)
    }

    fn watch(&mut self) -> Watching<'_> {
        let Self {
            station,
            listening,
            running,
            page,
            ..
        } = self;
        let pids = Arc::clone(&listening.pids);
        let look = move || {
            let pids = pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // Those that have not been started yet have nothing to tell.
            let pages = running.pages.iter().zip(pids).enumerate();
            let rank = |(local, (page, pid)): (usize, (&StatusPage, u32))| {
                let device = station.devices.get(local).cloned();
                HungRank::new(
                    (running.first_rank + local, pid, device),
                    &station.host,
                    page.read(),
                )
            };
            let ranks: Vec<_> = pages.map(rank).collect();
            page.show(&running.status(station, &ranks));
            ranks
        };
        (listening, Box::new(look))
    }

    fn leader_lost(&mut self, why: Option<&str>) {
        self.page
            .ill(why.map(|why| format!("the first node is lost: {why}")));
    }

    fn note(&mut self, text: &str) {
        self.listening.show.0.note(text);
    }
}

impl Running {
    /// How this node stands, which knows of no other.
    fn status(&self, station: &Station<'_>, ranks: &[HungRank]) -> RunStatus {
        RunStatus {
            time: unix_time(),
            host: station.host.clone(),
            launcher_pid: std::process::id(),
            attempt: self.attempt,
            state: RunState::Running,
            steps: self.steps,
            ranks: ranks
                .iter()
                .map(|rank| rank_status(rank, self.node))
                .collect(),
            nodes: Vec::new(),
            ledger: Ledger::default(),
        }
    }
}

/// Shows what ranks say, and remembers their processes.
struct Listening {
    show: Show,
    pids: Arc<Mutex<Vec<u32>>>,
}

impl Observer for Listening {
    fn started(&mut self, _rank: usize, pid: u32) {
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.push(pid);
    }

    fn message(&mut self, rank: usize, message: WorkerMessage) {
        self.show.message(rank, message);
    }

    fn line(&mut self, rank: usize, stream: Stream, line: &str) {
        self.show.line(rank, stream, line);
    }

    fn lines_skipped(&mut self, rank: usize, lines: u64) {
        self.show.lines_skipped(rank, lines);
    }

    fn log_failed(&mut self, rank: usize, path: &Path, error: &io::Error) {
        self.show.log_failed(rank, path, error);
    }
}
