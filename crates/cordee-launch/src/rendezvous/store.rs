//! The store as a state machine: what connections say and the caller wants goes in; messages, connections
//! to close and events come out. It must not know of sockets, threads or clocks: time is told to it, and
//! counts only while its owner ran.

mod barriers;
mod gathering;
mod joining;
mod node;
#[cfg(test)]
mod simulation;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use serde_json::Value;

pub use self::node::{CoordinatorEvent, Loss, Member, NodeState, Standing};
use self::{
    barriers::Barriers,
    gathering::Gathering,
    joining::{Held, Request},
    node::Node,
};
pub(super) use self::{
    barriers::Broken,
    gathering::{GatherFailure, Terms},
};
use super::{
    Fingerprint, Mismatch, NodeInfo,
    message::{FromAgent, ToAgent},
};

/// A connection, as its owner numbers them; no number comes twice.
pub(super) type Connection = u64;

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Output {
    Send(Connection, ToAgent),
    /// Once what was sent is out. Nothing more comes of this connection.
    Close(Connection),
}

/// What holds for the whole life of a store.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Silence after which a node is lost.
    pub(super) node_timeout: Duration,
    /// How long a connection may take to say who it is.
    pub(super) greeting_timeout: Duration,
    /// Nodes that are expected; with all of them there, who is odd among them can be told.
    pub(super) expected: usize,
}

impl Rules {
    /// How often either side says that it is there.
    pub(super) fn beat(&self) -> Duration {
        beat(self.node_timeout)
    }
}

/// How often either side says that it is there.
pub(super) fn beat(node_timeout: Duration) -> Duration {
    (node_timeout / 5).min(Duration::from_secs(1))
}

/// What a connection is.
#[derive(Debug)]
enum Seat {
    /// It has proved that it belongs to the job and said nothing yet.
    Silent {
        since: Duration,
        address: Option<IpAddr>,
    },
    /// Whether it may join is not known yet.
    Held(Box<Held>),
    Node(usize),
}

/// The store. Every call takes effect at the time that was told last.
#[derive(Debug)]
pub(super) struct Store {
    rules: Rules,
    now: Duration,
    seats: BTreeMap<Connection, Seat>,
    nodes: BTreeMap<usize, Node>,
    /// The generation that is gathered, or was last.
    generation: Option<u64>,
    gathering: Option<Gathering>,
    /// Members of the generation that are there, and those that were lost.
    members: BTreeSet<usize>,
    fallen: Vec<(usize, Loss)>,
    spares: BTreeSet<usize>,
    ended: BTreeSet<usize>,
    barriers: Barriers,
    /// That nodes are not alike, where nothing has been gathered yet.
    mismatch: Option<Mismatch>,
    /// Whether a generation has ever stood: from then on this node's fingerprint is the job's.
    established: bool,
    finish: Option<(u8, String)>,
    /// The newest refusals: node, host, why.
    refused: VecDeque<(usize, String, String)>,
    last_beat: Duration,
    outputs: Vec<Output>,
    events: VecDeque<CoordinatorEvent>,
}

impl Store {
    /// With this node in it, whose index is 0.
    pub(super) fn new(rules: Rules, own: NodeInfo, fingerprint: Fingerprint) -> Self {
        let node = Node::new(own, fingerprint, None, Duration::ZERO, 0);
        Self {
            rules,
            now: Duration::ZERO,
            seats: BTreeMap::new(),
            nodes: BTreeMap::from([(0, node)]),
            generation: None,
            gathering: None,
            members: BTreeSet::new(),
            fallen: Vec::new(),
            spares: BTreeSet::new(),
            ended: BTreeSet::new(),
            barriers: Barriers::default(),
            mismatch: None,
            established: false,
            finish: None,
            refused: VecDeque::new(),
            last_beat: Duration::ZERO,
            outputs: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// A connection has proved that it belongs to the job.
    pub(super) fn opened(&mut self, connection: Connection, address: Option<IpAddr>) {
        let since = self.now;
        self.seats
            .insert(connection, Seat::Silent { since, address });
    }

    /// A connection is gone.
    pub(super) fn closed(&mut self, connection: Connection, why: Loss) {
        if let Some(Seat::Node(node)) = self.seats.remove(&connection) {
            self.lose(node, why);
        }
    }

    /// A connection said something.
    pub(super) fn heard(&mut self, connection: Connection, message: FromAgent) {
        let node = match self.seats.get(&connection) {
            None | Some(Seat::Held(_)) => return,
            Some(&Seat::Silent { address, .. }) => {
                let FromAgent::Join {
                    node,
                    host,
                    workers,
                    payload,
                    fingerprint,
                } = message
                else {
                    self.seats.remove(&connection);
                    self.outputs.push(Output::Close(connection));
                    return;
                };
                let info = NodeInfo {
                    node,
                    host,
                    workers,
                    address,
                    payload,
                };
                return self.asks(Request {
                    connection,
                    info,
                    fingerprint,
                });
            }
            Some(Seat::Node(node)) => *node,
        };
        let now = self.now;
        let known = self.nodes.get_mut(&node).expect("a seat's node is known");
        known.heard = now;
        match message {
            // Once is enough.
            FromAgent::Join { .. } => {}
            FromAgent::Beat { status } => {
                if status.is_some() {
                    known.status = status;
                }
            }
            FromAgent::Ready { generation, offer } => self.ready(node, generation, offer),
            FromAgent::Ended { generation, report } => {
                let current = self.generation == Some(generation);
                if current && self.members.contains(&node) && self.ended.insert(node) {
                    self.events.push_back(CoordinatorEvent::Ended {
                        node,
                        generation,
                        report,
                    });
                }
            }
            FromAgent::StopRequested { count } => {
                let event = CoordinatorEvent::StopRequested { node, count };
                self.events.push_back(event);
            }
            FromAgent::Arrive {
                generation,
                name,
                within,
            } => self.arrive(node, generation, name, within),
            FromAgent::GiveUp { after } => {
                self.seats.remove(&connection);
                self.outputs.push(Output::Close(connection));
                self.lose(node, Loss::GaveUp { after });
            }
        }
    }

    /// What time it is; it never goes back.
    pub(super) fn at(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Looks for deadlines that have passed. What was heard meanwhile is told first: it is no silence.
    pub(super) fn tick(&mut self) {
        let limit = self.rules.node_timeout;
        let silent: Vec<_> = self
            .nodes
            .values()
            .filter(|node| self.now.saturating_sub(node.heard) >= limit)
            .filter_map(|node| Some((node.info.node, node.connection?)))
            .collect();
        for (node, connection) in silent {
            self.drop_node(node, connection, Loss::Silent { after: limit });
        }
        let overdue: Vec<_> = self
            .seats
            .iter()
            .filter(|(_, seat)| {
                matches!(seat, Seat::Silent { since, .. }
                    if self.now.saturating_sub(*since) >= self.rules.greeting_timeout)
            })
            .map(|(connection, _)| *connection)
            .collect();
        for connection in overdue {
            self.seats.remove(&connection);
            self.outputs.push(Output::Close(connection));
        }
        self.decide_held();
        self.barriers_overdue();
        if self.now.saturating_sub(self.last_beat) >= self.rules.beat() {
            self.last_beat = self.now;
            for connection in self.nodes.values().filter_map(|node| node.connection) {
                self.outputs.push(Output::Send(connection, ToAgent::Beat));
            }
        }
    }

    /// Sends every member what it needs to start. The first is this node's own, which it keeps.
    pub(super) fn start(
        &mut self,
        generation: u64,
        assignments: Vec<Value>,
    ) -> Result<(), StartFailure> {
        if self.generation != Some(generation) || self.members.is_empty() {
            return Err(StartFailure::NotGathered);
        }
        if let Some((node, why)) = self.fallen.first() {
            return Err(StartFailure::Fallen(*node, why.clone()));
        }
        if assignments.len() != self.members.len() {
            return Err(StartFailure::Count {
                given: assignments.len(),
                members: self.members.len(),
            });
        }
        for (node, assignment) in self.members.iter().zip(assignments) {
            if let Some(connection) = self.nodes[node].connection {
                let message = ToAgent::Start {
                    generation,
                    assignment,
                };
                self.outputs.push(Output::Send(connection, message));
            }
        }
        Ok(())
    }

    /// Tells the members of a generation something; of one that is over nothing.
    pub(super) fn tell_members(&mut self, generation: u64, message: &ToAgent) {
        if self.generation != Some(generation) {
            return;
        }
        for node in &self.members {
            if let Some(connection) = self.nodes[node].connection {
                let message = message.clone();
                self.outputs.push(Output::Send(connection, message));
            }
        }
    }

    /// Counts that a node was to blame for the end of a generation.
    pub(super) fn blame(&mut self, node: usize) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.blamed += 1;
        }
    }

    /// Tells all to leave; so is everybody who comes later.
    pub(super) fn finish(&mut self, code: u8, text: String) {
        let message = ToAgent::Finish {
            code,
            text: text.clone(),
        };
        self.gathering = None;
        self.finish = Some((code, text));
        for (connection, seat) in &self.seats {
            if !matches!(seat, Seat::Silent { .. }) {
                let message = message.clone();
                self.outputs.push(Output::Send(*connection, message));
            }
        }
    }

    /// Whether everybody has left.
    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// How all nodes stand that ever joined.
    pub(super) fn states(&self) -> Vec<NodeState> {
        let state = |node: &Node| {
            let index = node.info.node;
            let standing = match &node.lost {
                Some(why) => Standing::Lost(why.clone()),
                None if self.members.contains(&index) => Standing::Member,
                None if self.spares.contains(&index) => Standing::Spare,
                None => Standing::Waiting,
            };
            NodeState {
                info: node.info.clone(),
                standing,
                silent: match node.connection {
                    Some(_) => self.now.saturating_sub(node.heard),
                    None if node.lost.is_some() => self.now.saturating_sub(node.heard),
                    None => Duration::ZERO,
                },
                status: node.status.clone(),
                blamed: node.blamed,
            }
        };
        self.nodes.values().map(state).collect()
    }

    pub(super) fn next_event(&mut self) -> Option<CoordinatorEvent> {
        self.events.pop_front()
    }

    pub(super) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Tells a node that it is given up, and gives it up.
    fn drop_node(&mut self, node: usize, connection: Connection, why: Loss) {
        self.seats.remove(&connection);
        let told = ToAgent::Lost(why.clone());
        self.outputs.push(Output::Send(connection, told));
        self.outputs.push(Output::Close(connection));
        self.lose(node, why);
    }

    /// What follows of a node's loss; its connection is off the seats already.
    fn lose(&mut self, node: usize, why: Loss) {
        let known = self.nodes.get_mut(&node).expect("a seat's node is known");
        known.connection = None;
        known.ready = None;
        known.lost = Some(why.clone());
        self.spares.remove(&node);
        let member = self.members.remove(&node);
        if member {
            self.fallen.push((node, why.clone()));
            self.break_barriers(node, &why);
        }
        self.count_ready();
        if self.finish.is_none() {
            self.events
                .push_back(CoordinatorEvent::Lost { node, member, why });
        }
        self.decide_held();
    }
}

/// Why a generation was not started.
#[derive(Debug, PartialEq)]
pub(super) enum StartFailure {
    NotGathered,
    Fallen(usize, Loss),
    Count { given: usize, members: usize },
}
