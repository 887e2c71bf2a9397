//! Who may join.

use std::time::Duration;

use super::{Connection, CoordinatorEvent, Loss, Output, Seat, Store, node::Node};
use crate::rendezvous::{
    Fingerprint, NodeInfo,
    fingerprint::compare,
    message::{Refusal, ToAgent},
};

/// How long it is waited for more nodes before it is told which of them are odd.
const MORE_NODES: Duration = Duration::from_secs(3);
/// Refusals that are kept, to be told of when a gathering fails.
const REFUSALS: usize = 8;
/// Beats that an agent may miss before its place is given to another one that claims it.
const MISSED_BEATS: u32 = 3;

/// Somebody who wants to join.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) connection: Connection,
    pub(super) info: NodeInfo,
    pub(super) fingerprint: Fingerprint,
}

/// One that cannot be answered yet.
#[derive(Debug)]
pub(super) struct Held {
    request: Request,
    since: Duration,
    /// That another agent has the index; otherwise it is not like the coordinator.
    taken: bool,
}

impl Store {
    pub(super) fn asks(&mut self, request: Request) {
        let Request {
            connection, info, ..
        } = &request;
        let connection = *connection;
        if let Some((code, text)) = self.finish.clone() {
            self.seats.remove(&connection);
            let message = ToAgent::Finish { code, text };
            self.outputs.push(Output::Send(connection, message));
            self.outputs.push(Output::Close(connection));
            return;
        }
        // The coordinator is there as long as anybody can ask.
        if info.node == 0 {
            return self.refuse_taken(request);
        }
        let taken = self.nodes.get(&info.node).is_some_and(Node::is_here);
        let alike = self.is_like_the_coordinator(&request);
        if taken || !alike {
            let held = Held {
                request,
                since: self.now,
                taken,
            };
            self.seats.insert(connection, Seat::Held(Box::new(held)));
            return self.decide_held();
        }
        self.admit(request);
        // It may be the last one that was waited for.
        self.decide_held();
    }

    fn is_like_the_coordinator(&self, request: &Request) -> bool {
        let own = (0, "", &self.nodes[&0].fingerprint);
        compare(&[own, (request.info.node, "", &request.fingerprint)]).is_none()
    }

    fn admit(&mut self, request: Request) {
        let Request {
            connection,
            info,
            fingerprint,
        } = request;
        let index = info.node;
        let blamed = self.nodes.get(&index).map_or(0, |node| node.blamed);
        let node = Node::new(info, fingerprint, Some(connection), self.now, blamed);
        self.nodes.insert(index, node);
        self.seats.insert(connection, Seat::Node(index));
        let node_timeout = self.rules.node_timeout;
        let message = ToAgent::Joined { node_timeout };
        self.outputs.push(Output::Send(connection, message));
        if let Some(gathering) = &self.gathering {
            let message = gathering.call();
            self.outputs.push(Output::Send(connection, message));
        }
        let event = CoordinatorEvent::Joined { node: index };
        self.events.push_back(event);
    }

    /// Answers those whose case has become clear.
    pub(super) fn decide_held(&mut self) {
        while let Some(connection) = self.clear_claim() {
            let Some(Seat::Held(held)) = self.seats.remove(&connection) else {
                return;
            };
            let index = held.request.info.node;
            let current = self.nodes.get(&index).and_then(|node| node.connection);
            match current {
                Some(_) if self.nodes[&index].heard > held.since => {
                    self.refuse_taken(held.request);
                }
                Some(old) => {
                    // It is asked again once the other one is gone, like anybody.
                    self.seats.insert(connection, Seat::Held(held));
                    self.drop_node(index, old, Loss::Replaced);
                }
                None => self.asks(held.request),
            }
        }
        self.decide_odd();
    }

    /// A connection that claims another's index, and it is clear whose it is.
    fn clear_claim(&self) -> Option<Connection> {
        let patience = self.rules.beat() * MISSED_BEATS;
        let is_clear = |held: &Held| {
            let Some(node) = self.nodes.get(&held.request.info.node) else {
                return true;
            };
            !node.is_here()
                || node.heard > held.since
                || self.now.saturating_sub(node.heard.max(held.since)) >= patience
        };
        let mut claims = self
            .seats
            .iter()
            .filter_map(|(connection, seat)| match seat {
                Seat::Held(held) if held.taken && is_clear(held) => Some(*connection),
                _ => None,
            });
        claims.next()
    }

    fn refuse_taken(&mut self, request: Request) {
        let holder = &self.nodes[&request.info.node].info;
        let refusal = Refusal::Taken {
            host: holder.host.clone(),
            address: holder.address,
        };
        let why = format!("{} has this node index", holder.host);
        self.refuse(request, refusal, why);
    }

    fn refuse(&mut self, request: Request, refusal: Refusal, why: String) {
        let Request {
            connection, info, ..
        } = request;
        self.seats.remove(&connection);
        let message = ToAgent::Refused(refusal);
        self.outputs.push(Output::Send(connection, message));
        self.outputs.push(Output::Close(connection));
        if self.refused.len() == REFUSALS {
            self.refused.pop_front();
        }
        let told = (info.node, info.host.clone(), why.clone());
        self.refused.push_back(told);
        self.events.push_back(CoordinatorEvent::Refused {
            node: info.node,
            host: info.host,
            why,
        });
    }

    /// Refuses those who are not like the coordinator, once it can be told who is odd.
    fn decide_odd(&mut self) {
        let odd = || {
            self.seats
                .iter()
                .filter_map(|(connection, seat)| match seat {
                    Seat::Held(held) if !held.taken => Some((*connection, held)),
                    _ => None,
                })
        };
        let Some(first) = odd().map(|(_, held)| held.since).min() else {
            return;
        };
        let here = self.nodes.values().filter(|node| node.is_here());
        let all = here.clone().count() + odd().count() >= self.rules.expected;
        let waited = self.now.saturating_sub(first) >= MORE_NODES;
        if !(all || waited || self.established) {
            return;
        }
        let mut nodes: Vec<_> = here
            .map(|node| (&node.info, &node.fingerprint))
            .chain(odd().map(|(_, held)| (&held.request.info, &held.request.fingerprint)))
            .map(|(info, fingerprint)| (info.node, info.host.as_str(), fingerprint))
            .collect();
        nodes.sort_by_key(|(node, ..)| *node);
        let Some(mismatch) = compare(&nodes) else {
            return;
        };
        let connections: Vec<_> = odd().map(|(connection, _)| connection).collect();
        for connection in connections {
            if let Some(Seat::Held(held)) = self.seats.remove(&connection) {
                let refusal = Refusal::Mismatch(mismatch.clone());
                self.refuse(held.request, refusal, mismatch.to_string());
            }
        }
        if !self.established {
            self.mismatch = Some(mismatch);
        }
    }
}
