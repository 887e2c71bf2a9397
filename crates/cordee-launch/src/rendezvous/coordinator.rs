//! The coordinator as the agent of node 0 uses it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cordee_protocol::Secret;
use serde_json::Value;

use super::{
    CoordinatorEvent, Fingerprint, MeetingFile, Member, NodeInfo, NodeState, RendezvousError,
    addresses::published,
    meeting_file::Written,
    message::{MOST_BYTES, ToAgent},
    server::{Server, Shared, State},
    store::{Broken, GatherFailure, Rules, StartFailure, Store, Terms},
};
use crate::threads;

/// Connections that the system keeps until they are accepted: all nodes of a job may come at once.
const BACKLOG: i32 = 4096;
/// What an assignment may have around it in a message.
const AROUND: usize = 4096;
/// How long agents may take to read that the job is over.
const FAREWELL: Duration = Duration::from_secs(2);
/// The longest sleep until the store is looked at again.
const SLICE: Duration = Duration::from_millis(100);

/// How a coordinator is started.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    /// Which job.
    pub job: String,
    /// What its processes know and nobody else.
    pub secret: Secret,
    /// Where to listen; on all interfaces and a free port unless told.
    pub bind: Option<SocketAddr>,
    /// A name under which other nodes find this one, if there is any.
    pub host_name: Option<String>,
    /// Where to leave the meeting file, unless everybody is told beforehand.
    pub meeting_file: Option<PathBuf>,
    /// This node's host.
    pub host: String,
    /// Workers that it would start.
    pub workers: usize,
    /// What is to be known of it, like the other nodes' payloads.
    pub payload: Value,
    /// What has to be alike on all nodes.
    pub fingerprint: Fingerprint,
    /// Nodes that are expected: with all of them there, an odd one is told at once.
    pub expected: usize,
    /// Silence after which a node is lost, and for the nodes this one.
    pub node_timeout: Duration,
    /// How long a connection may take to prove that it belongs to the job and say who it is.
    pub greeting_timeout: Duration,
}

/// What a generation is made of.
#[derive(Clone, Debug)]
pub struct Gather {
    /// Its number, larger than all before.
    pub generation: u64,
    /// The fewest nodes that are enough, this one included.
    pub fewest: usize,
    /// The most that are taken.
    pub most: usize,
    /// How long it is waited for more once the fewest are ready.
    pub last_call: Duration,
    /// How long it is waited at all.
    pub join_timeout: Duration,
    /// What this node offers, like the other members.
    pub offer: Value,
}

/// Keeps the store of a job. Dropped, it closes all connections and removes its meeting file.
pub struct Coordinator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    port: u16,
    addresses: Vec<String>,
    meeting_file: Option<Written>,
}

impl Coordinator {
    /// Begins to listen.
    pub fn start(options: CoordinatorOptions) -> Result<Self, RendezvousError> {
        let system = |what| move |source| RendezvousError::System { what, source };
        let (listener, bound) = listen(options.bind)?;
        let addresses = published(bound, options.host_name.as_deref())
            .map_err(system("find this machine's addresses"))?;
        let rules = Rules {
            node_timeout: options.node_timeout,
            greeting_timeout: options.greeting_timeout,
            expected: options.expected,
        };
        let own = NodeInfo {
            node: 0,
            host: options.host,
            workers: options.workers,
            address: None,
            payload: options.payload,
        };
        let store = Store::new(rules.clone(), own, options.fingerprint);
        let shared = Shared::new(store).map_err(system("wake a thread"))?;
        let shared = Arc::new(shared);
        let secret = options.secret.clone();
        let server = Server::new(listener, Arc::clone(&shared), secret, rules)
            .map_err(system("watch connections"))?;
        let thread = threads::start("coordinator", move || server.run())
            .map_err(system("start a thread"))?;
        let mut coordinator = Self {
            shared,
            thread: Some(thread),
            port: bound.port(),
            addresses,
            meeting_file: None,
        };
        if let Some(path) = options.meeting_file {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let file = MeetingFile {
                job: options.job,
                secret: options.secret,
                addresses: coordinator.addresses.clone(),
                started: since.map_or(0, |since| since.as_secs()),
            };
            file.write(&path)?;
            coordinator.meeting_file = Some(Written { path, file });
        }
        Ok(coordinator)
    }

    /// Where other nodes may find this one, as `host:port`; likelier ones first.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The port that is listened on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Begins a generation and waits until it is known who its members are: in the order of the nodes,
    /// this one first. `fits` says whether the run can be divided among nodes; it is quick, and asks
    /// nothing of this coordinator.
    pub fn gather(
        &self,
        gather: Gather,
        fits: &dyn Fn(&[&NodeInfo]) -> bool,
    ) -> Result<Vec<Member>, RendezvousError> {
        let terms = Terms {
            generation: gather.generation,
            fewest: gather.fewest,
            most: gather.most,
            last_call: gather.last_call,
            join_timeout: gather.join_timeout,
        };
        let mut state = self.state()?;
        let begun = state.store.gather(terms, gather.offer);
        begun.map_err(|failure| gather_error(failure, &state))?;
        self.shared.wake();
        loop {
            if let Some(result) = state.store.gathered(fits) {
                // Those who are not needed are told so.
                self.shared.wake();
                return result.map_err(|failure| gather_error(failure, &state));
            }
            state = self.wait(state, SLICE)?;
        }
    }

    /// Ends [`Self::gather`] on another thread, which fails then.
    pub fn give_up(&self) {
        self.shared.lock().store.give_up();
        self.shared.wake();
    }

    /// Sends every member of a generation that was gathered what it needs to start. The first assignment
    /// is this node's own, which is not sent.
    pub fn start_generation(
        &self,
        generation: u64,
        assignments: Vec<Value>,
    ) -> Result<(), RendezvousError> {
        for assignment in assignments.iter().skip(1) {
            let len = serde_json::to_string(assignment).map_or(0, |text| text.len());
            let most = MOST_BYTES - AROUND;
            if len > most {
                let what = "an assignment";
                return Err(RendezvousError::TooLong { what, len, most });
            }
        }
        let started = self.state()?.store.start(generation, assignments);
        self.shared.wake();
        started.map_err(|failure| match failure {
            StartFailure::Fallen(node, why) => RendezvousError::MemberLost {
                generation,
                node,
                why: why.to_string(),
            },
            StartFailure::NotGathered => RendezvousError::Misuse(format!(
                "generation {generation} is started, and was not gathered"
            )),
            StartFailure::Count { given, members } => RendezvousError::Misuse(format!(
                "generation {generation} has {members} members and was given {given} assignments"
            )),
        })
    }

    /// The next thing to know, if there is one within the time.
    pub fn next_event(
        &self,
        timeout: Duration,
    ) -> Result<Option<CoordinatorEvent>, RendezvousError> {
        let until = Instant::now() + timeout;
        let mut state = self.state()?;
        loop {
            if let Some(event) = state.store.next_event() {
                return Ok(Some(event));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self.wait(state, left)?;
        }
    }

    /// Asks the members of a generation to stop gracefully.
    pub fn stop(&self, generation: u64) {
        self.tell(generation, &ToAgent::Stop { generation });
    }

    /// Has the members of a generation end their workers now, after a look at what they are at where
    /// `look` says so.
    pub fn end(&self, generation: u64, look: bool) {
        self.tell(generation, &ToAgent::End { generation, look });
    }

    /// Counts that a node was to blame. Twice, and another one is preferred to it.
    pub fn blame(&self, node: usize) {
        self.shared.lock().store.blame(node);
    }

    /// How all nodes stand that ever joined, this one first.
    pub fn nodes(&self) -> Vec<NodeState> {
        self.shared.lock().store.states()
    }

    /// What is to be said of those who connected and do not belong to the job.
    pub fn strangers(&self) -> Option<String> {
        self.shared.lock().strangers.told()
    }

    /// Waits until every member of the generation has come to the barrier of this name, for `within`.
    pub fn barrier(
        &self,
        name: &str,
        generation: u64,
        within: Duration,
    ) -> Result<(), RendezvousError> {
        let mut state = self.state()?;
        state.store.arrive(0, generation, name.to_owned(), within);
        self.shared.wake();
        loop {
            match state.store.own_barrier(generation, name) {
                Some(Ok(())) => return Ok(()),
                Some(Err(why)) => return Err(barrier_error(name, generation, why)),
                None => state = self.wait(state, SLICE)?,
            }
        }
    }

    /// Tells all agents that the job is over and how, and waits until they have left, for a short time.
    pub fn finish(self, code: u8, text: &str) {
        self.say_farewell(code, text, Duration::ZERO);
    }

    /// The same of a job that came to nothing: whoever joins within the time is told, too.
    pub fn refuse_all(self, code: u8, text: &str, within: Duration) {
        self.say_farewell(code, text, within);
    }

    fn say_farewell(&self, code: u8, text: &str, open_for: Duration) {
        let open_until = Instant::now() + open_for;
        let until = open_until + FAREWELL;
        let Ok(mut state) = self.state() else {
            return;
        };
        state.store.finish(code, text.to_owned());
        self.shared.wake();
        while Instant::now() < open_until || !state.store.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.wait(state, left) {
                Ok(later) => state = later,
                Err(_) => return,
            }
        }
    }

    /// As long as this is kept the store stands still.
    #[cfg(test)]
    pub(super) fn hold(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    fn tell(&self, generation: u64, message: &ToAgent) {
        let mut state = self.shared.lock();
        state.store.tell_members(generation, message);
        self.shared.wake();
    }

    /// The state, of a store that is served.
    fn state(&self) -> Result<MutexGuard<'_, State>, RendezvousError> {
        served(self.shared.lock())
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        at_most: Duration,
    ) -> Result<MutexGuard<'a, State>, RendezvousError> {
        let waited = self.shared.changed.wait_timeout(state, at_most);
        served(waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.meeting_file = None;
        self.shared.lock().stopping = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn served(state: MutexGuard<'_, State>) -> Result<MutexGuard<'_, State>, RendezvousError> {
    match &state.failed {
        None => Ok(state),
        Some(why) => Err(RendezvousError::System {
            what: "keep the store",
            source: io::Error::other(why.clone()),
        }),
    }
}

fn listen(bind: Option<SocketAddr>) -> Result<(TcpListener, SocketAddr), RendezvousError> {
    let any = || {
        // Takes IPv4 too, where the machine has IPv6 at all.
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
    };
    let opened = bind
        .map_or_else(any, TcpListener::bind)
        .and_then(|listener| {
            rustix::net::listen(&listener, BACKLOG)?;
            let bound = listener.local_addr()?;
            Ok((listener, bound))
        });
    opened.map_err(|source| RendezvousError::Listen {
        address: bind.map_or("all interfaces".to_owned(), |address| address.to_string()),
        source,
    })
}

fn gather_error(failure: GatherFailure, state: &State) -> RendezvousError {
    match failure {
        GatherFailure::Mismatch(mismatch) => RendezvousError::Mismatch(mismatch),
        GatherFailure::Missing(mut attendance) => {
            attendance.strangers = state.strangers.told();
            RendezvousError::Missing(attendance)
        }
        GatherFailure::NoFit(attendance) => RendezvousError::NoFit(attendance),
        GatherFailure::Senseless => RendezvousError::Misuse(
            "a generation has a larger number than the last one, and at least one node".to_owned(),
        ),
        GatherFailure::Over => RendezvousError::Misuse("no generation is gathered".to_owned()),
    }
}

/// In the callers' words.
pub(super) fn barrier_error(name: &str, generation: u64, why: Broken) -> RendezvousError {
    if why.missing.is_empty() && why.lost.is_none() {
        return RendezvousError::Stale { generation };
    }
    RendezvousError::Barrier {
        name: name.to_owned(),
        generation,
        waited: why.waited,
        missing: why.missing,
        lost: why.lost.map(|(node, why)| (node, why.to_string())),
    }
}
