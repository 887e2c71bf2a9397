//! `status.json`: how the run stands, kept up to date while ranks run.
//!
//! A thread of its own writes it, since a file system that hangs must hold up nobody.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use cordee_launch::{
    HungRank, ProcessState, StopRequests,
    rendezvous::{NodeState, Standing as Place},
};
use cordee_metrics::{Ledger, NodeStatus, RankStatus, RunState, RunStatus, unix_time};
use cordee_protocol::{CallStatus, StatusPage};

use super::{
    agent_page::{AgentPage, rank_status},
    ledger::{Span, Standing, ledger},
};

/// How often the status is written.
const EVERY: Duration = Duration::from_secs(1);
/// How long the last one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of an attempt before its ranks are there.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) run_dir: PathBuf,
    pub(super) number: usize,
    pub(super) steps: u64,
    pub(super) host: String,
    pub(super) devices: Vec<String>,
    pub(super) pages: Vec<StatusPage>,
    pub(super) before: Duration,
    pub(super) after_failure: bool,
    pub(super) stop: StopRequests,
    pub(super) page: Arc<AgentPage>,
}

/// Keeps `status.json` up to date.
#[derive(Debug)]
pub(super) struct Board {
    attempt: Attempt,
    spawned: Instant,
    pids: Mutex<Vec<u32>>,
    orders: Mutex<Option<Sender<Last>>>,
    /// All nodes, where there may be several.
    nodes: Mutex<Vec<NodeState>>,
}

/// The last status, and who waits for it to be written.
type Last = (RunStatus, Sender<()>);

impl Board {
    /// Of an attempt whose ranks are about to start.
    pub(super) fn new(attempt: Attempt) -> Self {
        Self {
            attempt,
            spawned: Instant::now(),
            pids: Mutex::default(),
            orders: Mutex::default(),
            nodes: Mutex::default(),
        }
    }

    /// How the ranks of this node stand, for a verdict.
    pub(super) fn look(&self) -> Vec<HungRank> {
        let attempt = &self.attempt;
        let pages = attempt.pages.iter().zip(self.pids()).enumerate();
        let rank = |(rank, (page, pid)): (usize, (&StatusPage, u32))| {
            let device = attempt.devices.get(rank).cloned();
            HungRank::new((rank, pid, device), &attempt.host, page.read())
        };
        pages.map(rank).collect()
    }

    /// Takes note of how all nodes stand.
    pub(super) fn tell_of(&self, nodes: &[NodeState]) {
        *self.nodes.lock().unwrap_or_else(PoisonError::into_inner) = nodes.to_vec();
    }

    /// How they stand, and their ranks.
    fn others(&self) -> (Vec<NodeStatus>, Vec<RankStatus>) {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ranks = Vec::new();
        let node = |state: &NodeState| {
            let node = state.info.node;
            let told = state
                .status
                .clone()
                .filter(|_| state.standing == Place::Member);
            let told: Vec<HungRank> = told
                .and_then(|told| serde_json::from_value(told).ok())
                .unwrap_or_default();
            ranks.extend(told.iter().map(|rank| rank_status(rank, node)));
            NodeStatus {
                node,
                host: state.info.host.clone(),
                state: match state.standing {
                    Place::Waiting => "waiting",
                    Place::Member => "member",
                    Place::Spare => "spare",
                    Place::Lost(_) => "lost",
                }
                .to_owned(),
                heard_s: state.silent.as_secs_f64(),
                ranks: state.info.workers,
            }
        };
        (nodes.iter().map(node).collect(), ranks)
    }

    /// Takes note of a rank that was started; the last one starts the writing.
    pub(super) fn started(self: &Arc<Self>, pid: u32) {
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.push(pid);
        if pids.len() < self.attempt.pages.len() {
            return;
        }
        drop(pids);
        let (sender, orders) = channel();
        let board = Arc::clone(self);
        let writer = thread::Builder::new().name("status".to_owned());
        // Without the thread there is no status, and training goes on.
        if writer.spawn(move || board.write(&orders)).is_ok() {
            *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        }
    }

    /// The processes of the ranks.
    pub(super) fn pids(&self) -> Vec<u32> {
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.clone()
    }

    /// Where the time has gone, for an attempt that stands so.
    pub(super) fn ledger(&self, standing: Standing) -> Ledger {
        let span = Span {
            before: self.attempt.before,
            of_ranks: self.spawned.elapsed(),
            after_failure: self.attempt.after_failure,
        };
        ledger(&self.attempt.pages[0].read(), span, standing)
    }

    /// Writes the last status of the attempt, and waits for it no longer than is sensible.
    pub(super) fn finish(&self, state: RunState, ledger: Ledger) {
        let sender = self
            .orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(sender) = sender else { return };
        let (written, answer) = channel();
        if sender.send((self.status(state, ledger), written)).is_ok() {
            let _ = answer.recv_timeout(PATIENCE);
        }
    }

    fn write(&self, orders: &Receiver<Last>) {
        let now = || {
            let stopping = self.attempt.stop.count() > 0;
            let state = if stopping {
                RunState::Stopping
            } else {
                RunState::Running
            };
            self.status(state, self.ledger(Standing::Running))
        };
        loop {
            let status = now();
            self.attempt.page.show(&status);
            // A disk that is full is told of by others.
            let _ = status.write(&self.attempt.run_dir);
            match orders.recv_timeout(EVERY) {
                Ok((status, written)) => {
                    self.attempt.page.show(&status);
                    let _ = status.write(&self.attempt.run_dir);
                    let _ = written.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn status(&self, state: RunState, ledger: Ledger) -> RunStatus {
        let pids = self.pids();
        let (nodes, others) = self.others();
        let rank = |(rank, page): (usize, &StatusPage)| {
            let (pid, status) = (pids[rank], page.read());
            let waits_in = status.call.filter(CallStatus::is_under_way);
            RankStatus {
                rank,
                node: 0,
                pid,
                device: self.attempt.devices.get(rank).cloned(),
                process: ProcessState::of(pid).to_string(),
                phase: status.phase.to_string(),
                step: status.step,
                phase_s: status.phase_for.as_secs_f64(),
                quiet_s: status.quiet_for.as_secs_f64(),
                waits_in: waits_in.map(|call| call.to_string()),
            }
        };
        RunStatus {
            time: unix_time(),
            host: self.attempt.host.clone(),
            launcher_pid: std::process::id(),
            attempt: self.attempt.number,
            state,
            steps: self.attempt.steps,
            ranks: {
                let own = self.attempt.pages.iter().enumerate().map(rank);
                own.chain(others).collect()
            },
            nodes,
            ledger,
        }
    }
}
