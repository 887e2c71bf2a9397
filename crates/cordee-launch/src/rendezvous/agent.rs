//! The agent of a node other than node 0: its connection to the coordinator.
//!
//! A thread reads, beats, and finds out that the coordinator is lost; callers send and take events.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use cordee_protocol::Secret;
use serde_json::Value;

use super::{
    JoinOptions, Loss, RendezvousError,
    clock::{Clock, Deadline},
    coordinator::barrier_error,
    dial::{Over, Receiving, Sending},
    join::{Joined, join},
    message::{FromAgent, MOST_BYTES, ToAgent},
    store::{Broken, beat},
};
use crate::threads;

/// The longest sleep until a barrier is looked at again.
const SLICE: Duration = Duration::from_millis(250);

/// What an agent is told.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentEvent {
    /// A generation begins: end what runs of earlier ones, then be [`Agent::ready`].
    Gather {
        /// Its number.
        generation: u64,
    },
    /// This node is not needed in the generation, and waits for the next.
    Spare {
        /// Its number.
        generation: u64,
    },
    /// Start.
    Start {
        /// The number of the generation.
        generation: u64,
        /// What the coordinator wants started.
        assignment: Value,
    },
    /// Stop gracefully.
    Stop {
        /// The number of the generation.
        generation: u64,
    },
    /// End all workers now.
    End {
        /// The number of the generation.
        generation: u64,
        /// Look first at what they are at.
        look: bool,
    },
    /// The job is over; nothing comes after this.
    Finish {
        /// The code to exit with.
        code: u8,
        /// What is to be said of it.
        text: String,
    },
    /// The coordinator is lost; nothing comes after this. To join again is to begin anew.
    Lost {
        /// How that was found out.
        why: Loss,
    },
}

/// This node at the coordinator. Dropped, it leaves.
pub struct Agent {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    coordinator: SocketAddr,
    local: IpAddr,
    secret: Secret,
    node_timeout: Duration,
}

struct Shared {
    sending: Mutex<Sending>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    events: VecDeque<AgentEvent>,
    /// The newest that was gathered.
    generation: Option<u64>,
    barriers: BTreeMap<(u64, String), Result<(), Broken>>,
    status: Option<Value>,
    over: Option<AgentEvent>,
}

impl Agent {
    /// Finds the coordinator and joins, or says at the deadline what was tried.
    pub fn join(options: &JoinOptions) -> Result<Self, RendezvousError> {
        let system = |what| move |source| RendezvousError::System { what, source };
        let Joined {
            line,
            coordinator,
            local,
            secret,
            node_timeout,
        } = join(options)?;
        let limit = node_timeout.max(Duration::from_millis(1));
        line.sending
            .set_timeout(limit)
            .map_err(system("set up a connection"))?;
        let shared = Arc::new(Shared {
            sending: Mutex::new(line.sending),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let reader = Reader::new(Arc::clone(&shared), line.receiving, node_timeout)
            .map_err(system("set up a connection"))?;
        let thread =
            threads::start("agent", move || reader.run()).map_err(system("start a thread"))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            coordinator,
            local,
            secret,
            node_timeout,
        })
    }

    /// Where the coordinator answered.
    pub fn coordinator(&self) -> SocketAddr {
        self.coordinator
    }

    /// The address of this node that the coordinator sees, unless somebody translates addresses between.
    pub fn local_address(&self) -> IpAddr {
        self.local
    }

    /// What processes of the job know and nobody else.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The next thing to know, if there is one within the time. The last one comes again and again.
    pub fn next(&self, timeout: Duration) -> Option<AgentEvent> {
        let until = Instant::now() + timeout;
        let mut state = self.shared.state();
        loop {
            let event = state.events.pop_front();
            if let Some(event) = event.or_else(|| state.over.clone()) {
                return Some(event);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.shared.wait(state, left);
        }
    }

    /// This node is ready for a generation, and offers this.
    pub fn ready(&self, generation: u64, offer: Value) -> Result<(), RendezvousError> {
        self.shared.send(&FromAgent::Ready { generation, offer })
    }

    /// What is said of this node from the next beat on. Beats go out without this, too.
    pub fn beat(&self, status: Value) {
        self.shared.state().status = Some(status);
    }

    /// The workers of a generation have ended.
    pub fn ended(&self, generation: u64, report: Value) -> Result<(), RendezvousError> {
        self.shared.send(&FromAgent::Ended { generation, report })
    }

    /// Somebody asked this node to stop the job, so many times so far.
    pub fn stop_requested(&self, count: usize) -> Result<(), RendezvousError> {
        self.shared.send(&FromAgent::StopRequested { count })
    }

    /// Waits until every member of the generation has come to the barrier of this name, for `within`.
    pub fn barrier(
        &self,
        name: &str,
        generation: u64,
        within: Duration,
    ) -> Result<(), RendezvousError> {
        let key = (generation, name.to_owned());
        self.shared.state().barriers.remove(&key);
        self.shared.send(&FromAgent::Arrive {
            generation,
            name: name.to_owned(),
            within,
        })?;
        // The coordinator keeps the time. That it answers at all is watched here.
        let mut deadline = Deadline::new(within.saturating_add(self.node_timeout));
        let mut state = self.shared.state();
        loop {
            if let Some(result) = state.barriers.remove(&key) {
                return result.map_err(|why| barrier_error(name, generation, why));
            }
            if let Some(over) = &state.over {
                return Err(over_error(over));
            }
            if state.generation.is_none_or(|newest| newest != generation) {
                return Err(RendezvousError::Stale { generation });
            }
            let Some(left) = deadline.left() else {
                return Err(RendezvousError::Barrier {
                    name: name.to_owned(),
                    generation,
                    waited: within,
                    missing: Vec::new(),
                    lost: None,
                });
            };
            state = self.shared.wait(state, left.min(SLICE));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.sending().close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sending(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, at_most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn send(&self, message: &FromAgent) -> Result<(), RendezvousError> {
        if let Some(over) = &self.state().over {
            return Err(over_error(over));
        }
        match self.sending().send(message) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(RendezvousError::CoordinatorLost {
                why: error.to_string(),
            }),
            Err(len) => Err(RendezvousError::TooLong {
                what: "what is told the coordinator",
                len,
                most: MOST_BYTES,
            }),
        }
    }
}

fn over_error(over: &AgentEvent) -> RendezvousError {
    match over {
        AgentEvent::Finish { code, text } => RendezvousError::Finished {
            code: *code,
            text: text.clone(),
        },
        AgentEvent::Lost { why } => RendezvousError::CoordinatorLost {
            why: why.to_string(),
        },
        _ => RendezvousError::CoordinatorLost {
            why: Loss::Closed.to_string(),
        },
    }
}

/// The thread's half.
struct Reader {
    shared: Arc<Shared>,
    receiving: Receiving,
    node_timeout: Duration,
}

impl Reader {
    fn new(
        shared: Arc<Shared>,
        receiving: Receiving,
        node_timeout: Duration,
    ) -> std::io::Result<Self> {
        let tick = tick(node_timeout);
        receiving.stream.set_read_timeout(Some(tick))?;
        Ok(Self {
            shared,
            receiving,
            node_timeout,
        })
    }

    fn run(mut self) {
        let last = self.listen();
        let mut state = self.shared.state();
        state.events.push_back(last.clone());
        state.over = Some(last);
        drop(state);
        self.shared.changed.notify_all();
        // The coordinator waits for that where it has said that the job is over.
        self.shared.sending().close();
    }

    /// Listens until nothing more comes; what is to be known last.
    fn listen(&mut self) -> AgentEvent {
        let mut clock = Clock::new(tick(self.node_timeout));
        let (mut heard, mut beaten) = (Duration::ZERO, Duration::ZERO);
        let lost = |over| AgentEvent::Lost {
            why: match over {
                Over::Closed => Loss::Closed,
                Over::Unreadable(what) => Loss::Unreadable(what),
            },
        };
        loop {
            loop {
                match self.receiving.take() {
                    Ok(Some(message)) => {
                        if let Some(last) = self.shared.hear(message) {
                            return last;
                        }
                    }
                    Ok(None) => break,
                    Err(over) => return lost(over),
                }
            }
            let came = match self.receiving.wait() {
                Ok(came) => came,
                Err(over) => return lost(over),
            };
            let now = clock.look();
            if came {
                heard = now;
            }
            if now.saturating_sub(heard) >= self.node_timeout {
                let after = self.node_timeout;
                // If it only stood still it reads that one day, and knows that it was not this node.
                let _ = self.shared.sending().send(&FromAgent::GiveUp { after });
                return AgentEvent::Lost {
                    why: Loss::Silent { after },
                };
            }
            if now.saturating_sub(beaten) >= beat(self.node_timeout) {
                beaten = now;
                self.beat();
            }
        }
    }

    fn beat(&self) {
        // Who is sending right now is heard without this.
        let Ok(mut sending) = self.shared.sending.try_lock() else {
            return;
        };
        let status = self.shared.state().status.take();
        // A connection that does not take it is found out by reading.
        let _ = sending.send(&FromAgent::Beat { status });
    }
}

impl Shared {
    /// Takes note of what the coordinator says, unless it belongs to a generation that is over. What
    /// comes last is given back.
    fn hear(&self, message: ToAgent) -> Option<AgentEvent> {
        let mut state = self.state();
        let newest = state.generation;
        let current = |generation| newest == Some(generation);
        let event = match message {
            ToAgent::Gather { generation } if newest.is_none_or(|newest| generation > newest) => {
                state.generation = Some(generation);
                state.barriers.clear();
                AgentEvent::Gather { generation }
            }
            ToAgent::Spare { generation } if current(generation) => {
                AgentEvent::Spare { generation }
            }
            ToAgent::Start {
                generation,
                assignment,
            } if current(generation) => AgentEvent::Start {
                generation,
                assignment,
            },
            ToAgent::Stop { generation } if current(generation) => AgentEvent::Stop { generation },
            ToAgent::End { generation, look } if current(generation) => {
                AgentEvent::End { generation, look }
            }
            ToAgent::Passed { generation, name } if current(generation) => {
                state.barriers.insert((generation, name), Ok(()));
                drop(state);
                self.changed.notify_all();
                return None;
            }
            ToAgent::Broken {
                generation,
                name,
                why,
            } if current(generation) => {
                state.barriers.insert((generation, name), Err(why));
                drop(state);
                self.changed.notify_all();
                return None;
            }
            ToAgent::Finish { code, text } => return Some(AgentEvent::Finish { code, text }),
            ToAgent::Lost(why) => {
                let why = Loss::GivenUp(Box::new(why));
                return Some(AgentEvent::Lost { why });
            }
            _ => return None,
        };
        state.events.push_back(event);
        drop(state);
        self.changed.notify_all();
        None
    }
}

/// How long reading waits at most before beats and silence are looked after.
fn tick(node_timeout: Duration) -> Duration {
    (beat(node_timeout) / 4).max(Duration::from_millis(1))
}
