//! Barriers of a generation: passed when every member has come, broken for everybody when one cannot come
//! or does not in time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Loss, Output, Store};
use crate::rendezvous::message::ToAgent;

#[derive(Debug, Default)]
pub(super) struct Barriers {
    open: BTreeMap<String, Open>,
    /// Who comes to one of these is told at once.
    broken: BTreeMap<String, Broken>,
    /// What became of those that the coordinator itself came to.
    own: BTreeMap<String, Result<(), Broken>>,
}

#[derive(Debug)]
struct Open {
    since: Duration,
    /// Until when each of those who came waits.
    came: BTreeMap<usize, Duration>,
}

/// Why a barrier was not passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::rendezvous) struct Broken {
    /// Since the first came.
    pub(in crate::rendezvous) waited: Duration,
    pub(in crate::rendezvous) missing: Vec<usize>,
    /// What became of the one that was lost, if that is why.
    pub(in crate::rendezvous) lost: Option<(usize, Loss)>,
}

impl Store {
    /// A member, node 0 too, has come to a barrier. Who is no member of this generation is not heard.
    pub(in crate::rendezvous) fn arrive(
        &mut self,
        node: usize,
        generation: u64,
        name: String,
        within: Duration,
    ) {
        if self.generation != Some(generation) || !self.members.contains(&node) {
            return;
        }
        if node == 0 {
            self.barriers.own.remove(&name);
        }
        if let Some(why) = self.barriers.broken.get(&name) {
            let why = why.clone();
            return self.tell_barrier(&[node], name, Err(why));
        }
        let now = self.now;
        let open = self.barriers.open.entry(name.clone()).or_insert(Open {
            since: now,
            came: BTreeMap::new(),
        });
        // To come again is not to wait longer.
        let until = now.saturating_add(within);
        open.came.entry(node).or_insert(until);
        if let Some((lost, why)) = self.fallen.first().cloned() {
            return self.break_one(&name, Some((lost, why)));
        }
        if open.came.len() == self.members.len() {
            self.barriers.open.remove(&name);
            let all: Vec<_> = self.members.iter().copied().collect();
            self.tell_barrier(&all, name, Ok(()));
        }
    }

    /// What became of a barrier that the coordinator itself came to, once.
    pub(in crate::rendezvous) fn own_barrier(
        &mut self,
        generation: u64,
        name: &str,
    ) -> Option<Result<(), Broken>> {
        if self.generation != Some(generation) || !self.members.contains(&0) {
            let (waited, missing) = (Duration::ZERO, Vec::new());
            return Some(Err(Broken {
                waited,
                missing,
                lost: None,
            }));
        }
        self.barriers.own.remove(name)
    }

    pub(super) fn barriers_overdue(&mut self) {
        let now = self.now;
        let overdue: Vec<_> = self
            .barriers
            .open
            .iter()
            .filter(|(_, open)| open.came.values().any(|until| *until <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in overdue {
            self.break_one(&name, None);
        }
    }

    pub(super) fn break_barriers(&mut self, node: usize, why: &Loss) {
        let names: Vec<_> = self.barriers.open.keys().cloned().collect();
        for name in names {
            self.break_one(&name, Some((node, why.clone())));
        }
    }

    pub(super) fn forget_barriers(&mut self) {
        self.barriers = Barriers::default();
    }

    fn break_one(&mut self, name: &str, lost: Option<(usize, Loss)>) {
        let Some(open) = self.barriers.open.remove(name) else {
            return;
        };
        let fallen = self.fallen.iter().map(|(node, _)| *node);
        let missing: BTreeSet<_> = self.members.iter().copied().chain(fallen).collect();
        let came: Vec<_> = open.came.keys().copied().collect();
        let why = Broken {
            waited: self.now.saturating_sub(open.since),
            missing: missing
                .into_iter()
                .filter(|node| !came.contains(node))
                .collect(),
            lost,
        };
        self.barriers.broken.insert(name.to_owned(), why.clone());
        self.tell_barrier(&came, name.to_owned(), Err(why));
    }

    fn tell_barrier(&mut self, nodes: &[usize], name: String, result: Result<(), Broken>) {
        let Some(generation) = self.generation else {
            return;
        };
        let message = match &result {
            Ok(()) => ToAgent::Passed {
                generation,
                name: name.clone(),
            },
            Err(why) => ToAgent::Broken {
                generation,
                name: name.clone(),
                why: why.clone(),
            },
        };
        for node in nodes {
            if let Some(connection) = self.nodes[node].connection {
                self.outputs.push(Output::Send(connection, message.clone()));
            }
        }
        if nodes.contains(&0) {
            self.barriers.own.insert(name, result);
        }
    }
}
