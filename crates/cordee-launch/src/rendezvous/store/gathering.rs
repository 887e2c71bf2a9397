//! Which nodes make up a generation.

use std::time::Duration;

use serde_json::Value;

use super::{Member, Mismatch, NodeInfo, Output, Store, node::Node};
use crate::rendezvous::{Attendance, message::ToAgent};

/// So often may a node be to blame before another is preferred to it.
const BLAMED: u32 = 2;
/// Other nodes than the first ones that are tried for each number of nodes.
const VARIANTS: usize = 16;

/// What is asked for.
#[derive(Clone, Debug)]
pub(in crate::rendezvous) struct Terms {
    pub(in crate::rendezvous) generation: u64,
    pub(in crate::rendezvous) fewest: usize,
    pub(in crate::rendezvous) most: usize,
    /// How long it is waited for more once the fewest are ready.
    pub(in crate::rendezvous) last_call: Duration,
    pub(in crate::rendezvous) join_timeout: Duration,
}

/// Why a generation was not gathered.
#[derive(Debug, PartialEq)]
pub(in crate::rendezvous) enum GatherFailure {
    Mismatch(Mismatch),
    Missing(Box<Attendance>),
    /// Enough are there, and no set of them fits.
    NoFit(Box<Attendance>),
    /// The generation is no newer than the last one, or there are to be no or fewer than the fewest nodes.
    Senseless,
    /// Nothing is gathered, or not any more.
    Over,
}

#[derive(Debug)]
pub(super) struct Gathering {
    terms: Terms,
    since: Duration,
    fewest_since: Option<Duration>,
    /// That the nodes that are ready were looked through after the last call, and do not fit.
    in_vain: bool,
}

impl Gathering {
    pub(super) fn call(&self) -> ToAgent {
        ToAgent::Gather {
            generation: self.terms.generation,
        }
    }
}

impl Node {
    fn is_blamed(&self) -> bool {
        self.info.node != 0 && self.blamed >= BLAMED
    }
}

impl Store {
    /// Nobody waits any more for the generation that is gathered.
    pub(in crate::rendezvous) fn give_up(&mut self) {
        self.gathering = None;
    }

    /// Begins a generation: whatever was before is over.
    pub(in crate::rendezvous) fn gather(
        &mut self,
        terms: Terms,
        offer: Value,
    ) -> Result<(), GatherFailure> {
        let newer = self.generation.is_none_or(|last| terms.generation > last);
        if !newer || terms.fewest == 0 || terms.most < terms.fewest {
            return Err(GatherFailure::Senseless);
        }
        if self.finish.is_some() {
            return Err(GatherFailure::Over);
        }
        self.generation = Some(terms.generation);
        self.rules.expected = terms.most;
        self.members.clear();
        self.fallen.clear();
        self.spares.clear();
        self.ended.clear();
        self.forget_barriers();
        let gathering = Gathering {
            terms,
            since: self.now,
            fewest_since: None,
            in_vain: false,
        };
        for node in self.nodes.values_mut() {
            node.ready = None;
            if let Some(connection) = node.connection {
                self.outputs
                    .push(Output::Send(connection, gathering.call()));
            }
        }
        self.gathering = Some(gathering);
        if let Some(own) = self.nodes.get_mut(&0) {
            own.ready = Some(offer);
        }
        self.count_ready();
        Ok(())
    }

    pub(super) fn ready(&mut self, node: usize, generation: u64, offer: Value) {
        if self.generation != Some(generation) {
            return;
        }
        if self.gathering.is_some() {
            if let Some(known) = self.nodes.get_mut(&node) {
                known.ready = Some(offer);
            }
            self.count_ready();
        } else if !self.members.contains(&node) && self.spares.insert(node) {
            self.tell_spare(node, generation);
        }
    }

    /// Takes note of how many are ready, after any change of it.
    pub(super) fn count_ready(&mut self) {
        let ready = self.nodes.values().filter(|node| node.ready.is_some());
        let ready = ready.count();
        if let Some(gathering) = &mut self.gathering {
            gathering.in_vain = false;
            if ready < gathering.terms.fewest {
                gathering.fewest_since = None;
            } else if gathering.fewest_since.is_none() {
                gathering.fewest_since = Some(self.now);
            }
        }
    }

    /// The members, once it is known who they are.
    pub(in crate::rendezvous) fn gathered(
        &mut self,
        fits: &dyn Fn(&[&NodeInfo]) -> bool,
    ) -> Option<Result<Vec<Member>, GatherFailure>> {
        let Some(gathering) = &self.gathering else {
            return Some(Err(GatherFailure::Over));
        };
        if let Some(mismatch) = self.mismatch.take() {
            self.gathering = None;
            return Some(Err(GatherFailure::Mismatch(mismatch)));
        }
        let terms = gathering.terms.clone();
        let waited = self.now.saturating_sub(gathering.since);
        let last_call = gathering
            .fewest_since
            .is_some_and(|since| self.now.saturating_sub(since) >= terms.last_call);
        let timed_out = waited >= terms.join_timeout;
        let here = self.by_preference();
        let first = here
            .get(..terms.most)
            .filter(|first| first.iter().all(|node| node.ready.is_some()) && !gathering.in_vain);
        let mut chosen = first
            .map(|first| first.iter().map(|node| &node.info).collect::<Vec<_>>())
            .filter(|first| fits(first));
        let enough = gathering.fewest_since.is_some();
        let look = (last_call || timed_out) && enough && !gathering.in_vain;
        if chosen.is_none() && look {
            let ready: Vec<_> = here
                .iter()
                .filter(|node| node.ready.is_some())
                .map(|node| &node.info)
                .collect();
            chosen = choose(&ready, &terms, fits);
        }
        if let Some(chosen) = chosen {
            let chosen: Vec<_> = chosen.iter().map(|info| info.node).collect();
            return Some(Ok(self.take(&chosen, terms.generation)));
        }
        if timed_out {
            let attendance = Box::new(self.attendance(&terms, waited));
            self.gathering = None;
            return Some(Err(if enough {
                GatherFailure::NoFit(attendance)
            } else {
                GatherFailure::Missing(attendance)
            }));
        }
        if let Some(gathering) = self.gathering.as_mut().filter(|_| last_call) {
            gathering.in_vain = true;
        }
        None
    }

    /// Those who are here; who comes first is taken first. Node 0 does.
    fn by_preference(&self) -> Vec<&Node> {
        let mut here: Vec<_> = self.nodes.values().filter(|node| node.is_here()).collect();
        here.sort_by_key(|node| (node.is_blamed(), node.info.node));
        here
    }

    fn take(&mut self, chosen: &[usize], generation: u64) -> Vec<Member> {
        self.gathering = None;
        self.established = true;
        self.members = chosen.iter().copied().collect();
        let mut members = Vec::new();
        let mut spares = Vec::new();
        for node in self.nodes.values_mut() {
            let Some(offer) = node.ready.take() else {
                continue;
            };
            let info = node.info.clone();
            if self.members.contains(&info.node) {
                members.push(Member { info, offer });
            } else {
                spares.push(info.node);
            }
        }
        for node in spares {
            self.spares.insert(node);
            self.tell_spare(node, generation);
        }
        members
    }

    fn tell_spare(&mut self, node: usize, generation: u64) {
        if let Some(connection) = self.nodes[&node].connection {
            let message = ToAgent::Spare { generation };
            self.outputs.push(Output::Send(connection, message));
        }
    }

    fn attendance(&self, terms: &Terms, waited: Duration) -> Attendance {
        let named = |nodes: Vec<&Node>| {
            let named = nodes.into_iter();
            named
                .map(|node| (node.info.node, node.info.host.clone()))
                .collect()
        };
        let (ready, busy) = self
            .nodes
            .values()
            .filter(|node| node.is_here())
            .partition(|node| node.ready.is_some());
        let is_here = |index: &usize| self.nodes.get(index).is_some_and(Node::is_here);
        let lost = self.nodes.values().filter_map(|node| {
            let why = node.lost.as_ref()?.to_string();
            Some((node.info.node, node.info.host.clone(), why))
        });
        Attendance {
            generation: terms.generation,
            fewest: terms.fewest,
            most: terms.most,
            waited,
            ready: named(ready),
            busy: named(busy),
            missing: (0..terms.most).filter(|index| !is_here(index)).collect(),
            lost: lost.collect(),
            refused: self.refused.iter().cloned().collect(),
            strangers: None,
        }
    }
}

/// The most nodes that fit; of as many, the first ones.
fn choose<'a>(
    ready: &[&'a NodeInfo],
    terms: &Terms,
    fits: &dyn Fn(&[&NodeInfo]) -> bool,
) -> Option<Vec<&'a NodeInfo>> {
    let fitting = |mut nodes: Vec<&'a NodeInfo>| {
        nodes.sort_by_key(|info| info.node);
        fits(&nodes).then_some(nodes)
    };
    let sizes = (terms.fewest..=terms.most.min(ready.len())).rev();
    for size in sizes {
        if let Some(first) = fitting(ready[..size].to_vec()) {
            return Some(first);
        }
        let Some(more) = ready.get(..=size) else {
            continue;
        };
        // With one of the first left out for the next one; node 0 is never left out.
        for left_out in (1..size).rev().take(VARIANTS) {
            let mut others = more.to_vec();
            others.remove(left_out);
            if let Some(others) = fitting(others) {
                return Some(others);
            }
        }
    }
    None
}
