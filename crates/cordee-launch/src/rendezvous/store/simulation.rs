//! Jobs that go as badly as they can: nodes join, are lost, fall silent, repeat themselves and answer late,
//! in any order, and what the store promises holds after every step.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use proptest::prelude::*;
use serde_json::json;

use super::{
    tests::{JOIN_TIMEOUT, NODE_TIMEOUT, join, store, terms},
    *,
};

const NODES: usize = 6;
const WITHIN: Duration = Duration::from_secs(3);
/// In which whoever asks to join is answered: until the holder of its index is lost, and then some.
const ANSWERED: Duration = Duration::from_secs(14);
const TICK: Duration = Duration::from_millis(250);

#[derive(Clone, Debug)]
enum Action {
    /// Joins, also where it is there already.
    Join(usize),
    Odd(usize),
    /// Its newest connection breaks.
    Break(usize),
    /// It says nothing any more, and hears nothing.
    Mute(usize),
    /// It hears so many messages and answers them.
    Hear(usize, usize),
    /// It says again what it said before, whatever has happened since.
    Repeat(usize, usize),
    Arrive(usize, bool),
    Gather(usize, usize),
    Start,
    Blame(usize),
    Ended(usize),
    Pass(u64),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let node = 1..NODES;
    let action = prop_oneof![
        6 => node.clone().prop_map(Action::Join),
        1 => node.clone().prop_map(Action::Odd),
        2 => node.clone().prop_map(Action::Break),
        1 => node.clone().prop_map(Action::Mute),
        9 => (node.clone(), 1..4_usize).prop_map(|(node, count)| Action::Hear(node, count)),
        2 => (node.clone(), 0..20_usize).prop_map(|(node, which)| Action::Repeat(node, which)),
        3 => (0..NODES, any::<bool>()).prop_map(|(node, name)| Action::Arrive(node, name)),
        3 => (1..NODES, 0..3_usize).prop_map(|(fewest, more)| Action::Gather(fewest, fewest + more)),
        3 => Just(Action::Start),
        1 => (0..NODES).prop_map(Action::Blame),
        1 => node.prop_map(Action::Ended),
        4 => (1..30_u64).prop_map(Action::Pass),
    ];
    prop::collection::vec(action, 1..150)
}

/// One connection, from the other end.
#[derive(Debug)]
struct End {
    node: usize,
    open: bool,
    mute: bool,
    asked: Duration,
    /// The first thing that it was told, and whether that was that it has joined.
    answer: Option<bool>,
    inbox: VecDeque<ToAgent>,
    said: Vec<FromAgent>,
    /// Generations that it was ready for, and started.
    ready: BTreeSet<u64>,
    started: BTreeSet<u64>,
    generation: Option<u64>,
    /// Barriers that it has come to and heard nothing of: until when.
    waits: BTreeMap<(u64, String), Duration>,
}

struct World {
    store: Store,
    ends: BTreeMap<Connection, End>,
    newest: BTreeMap<usize, Connection>,
    next: Connection,
    generation: u64,
    /// Since when it is gathered.
    gathering: Option<(Terms, Duration)>,
    members: Option<Vec<usize>>,
    blamed: [u32; NODES],
    /// How often something worth testing came to pass.
    gathered: usize,
}

impl World {
    fn new() -> Self {
        Self {
            store: store(NODES),
            ends: BTreeMap::new(),
            newest: BTreeMap::new(),
            next: 0,
            generation: 0,
            gathering: None,
            members: None,
            blamed: [0; NODES],
            gathered: 0,
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Join(node) => self.join(node, "1"),
            Action::Odd(node) => self.join(node, "2"),
            Action::Break(node) => {
                if let Some(connection) = self.newest.remove(&node) {
                    self.ends.get_mut(&connection).unwrap().open = false;
                    self.store.closed(connection, Loss::Closed);
                }
            }
            Action::Mute(node) => {
                if let Some(end) = self.end(node) {
                    end.1.mute = true;
                }
            }
            Action::Hear(node, count) => (0..count).for_each(|_| self.hear(node)),
            Action::Repeat(node, which) => {
                if let Some((_, end)) = self.end(node).filter(|(_, end)| !end.said.is_empty()) {
                    let again = end.said[which % end.said.len()].clone();
                    self.say(node, again);
                }
            }
            Action::Arrive(node, name) => self.arrive(node, if name { "a" } else { "b" }),
            Action::Gather(fewest, most) => {
                self.generation += 1;
                let terms = terms(self.generation, fewest, most);
                self.store
                    .gather(terms.clone(), json!([0, self.generation]))
                    .unwrap();
                self.gathering = Some((terms, self.store.now));
                self.members = None;
            }
            Action::Start => {
                let members = self.members.as_ref().map_or(1, Vec::len);
                let started = self
                    .store
                    .start(self.generation, vec![Value::Null; members]);
                assert!(self.members.is_some() || started == Err(StartFailure::NotGathered));
            }
            Action::Blame(node) => {
                if self.store.nodes.contains_key(&node) {
                    self.store.blame(node);
                    self.blamed[node] += 1;
                }
            }
            Action::Ended(node) => {
                let generation = self.generation;
                let report = Value::Null;
                self.say(node, FromAgent::Ended { generation, report });
            }
            Action::Pass(ticks) => (0..ticks).for_each(|_| {
                self.store.at(self.store.now + TICK);
                for node in 1..NODES {
                    self.say(node, FromAgent::Beat { status: None });
                }
                self.store.tick();
                self.settle();
            }),
        }
        self.settle();
    }

    /// Its newest connection, if it is open and not mute.
    fn end(&mut self, node: usize) -> Option<(Connection, &mut End)> {
        let connection = *self.newest.get(&node)?;
        let end = self.ends.get_mut(&connection).unwrap();
        (end.open && !end.mute).then_some((connection, end))
    }

    fn join(&mut self, node: usize, version: &str) {
        self.next += 1;
        let message = join(node, version);
        let end = End {
            node,
            open: true,
            mute: false,
            asked: self.store.now,
            answer: None,
            inbox: VecDeque::new(),
            said: vec![message.clone()],
            ready: BTreeSet::new(),
            started: BTreeSet::new(),
            generation: None,
            waits: BTreeMap::new(),
        };
        self.ends.insert(self.next, end);
        self.newest.insert(node, self.next);
        self.store.opened(self.next, None);
        self.store.heard(self.next, message);
    }

    fn say(&mut self, node: usize, message: FromAgent) {
        if let Some((connection, end)) = self.end(node) {
            match &message {
                FromAgent::Ready { generation, .. } => _ = end.ready.insert(*generation),
                FromAgent::Beat { .. } => {}
                _ => end.said.push(message.clone()),
            }
            self.store.heard(connection, message);
        }
    }

    fn hear(&mut self, node: usize) {
        let Some((connection, end)) = self.end(node) else {
            return;
        };
        match end.inbox.pop_front() {
            Some(ToAgent::Gather { generation }) => {
                assert!(end.generation < Some(generation), "generations go up");
                end.generation = Some(generation);
                end.waits.clear();
                let offer = json!([connection, generation]);
                let message = FromAgent::Ready { generation, offer };
                end.said.push(message.clone());
                self.say(node, message);
            }
            Some(
                ToAgent::Passed { generation, name }
                | ToAgent::Broken {
                    generation, name, ..
                },
            ) => {
                end.waits.remove(&(generation, name));
            }
            _ => {}
        }
    }

    fn arrive(&mut self, node: usize, name: &str) {
        let (generation, now) = (self.generation, self.store.now);
        let name = name.to_owned();
        if node == 0 {
            return self.store.arrive(0, generation, name, WITHIN);
        }
        let is_member = self.store.members.contains(&node);
        if let Some((_, end)) = self.end(node) {
            if is_member && end.answer == Some(true) && end.generation == Some(generation) {
                let until = now + WITHIN;
                end.waits.entry((generation, name.clone())).or_insert(until);
            }
            self.say(
                node,
                FromAgent::Arrive {
                    generation,
                    name,
                    within: WITHIN,
                },
            );
        }
    }

    /// Takes what the store says, and checks all that it promises.
    fn settle(&mut self) {
        let gathered = self
            .gathering
            .as_ref()
            .and_then(|_| self.store.gathered(&|_| true));
        if let Some(result) = gathered {
            let (terms, since) = self.gathering.take().unwrap();
            match result {
                Ok(members) => self.check_members(&terms, &members),
                Err(GatherFailure::Missing(_)) => {
                    assert!(self.store.now >= since + JOIN_TIMEOUT);
                }
                Err(GatherFailure::Mismatch(mismatch)) => assert!(!mismatch.differences.is_empty()),
                Err(other) => panic!("{other:?}"),
            }
        }
        if let Some((_, since)) = &self.gathering {
            assert!(
                self.store.now < *since + JOIN_TIMEOUT,
                "gathering has a deadline"
            );
        }
        for output in self.store.take_outputs() {
            self.obey(output);
        }
        while self.store.next_event().is_some() {}
        let now = self.store.now;
        for end in self.ends.values().filter(|end| end.open) {
            assert!(
                end.answer.is_some() || now < end.asked + ANSWERED,
                "{end:?}"
            );
            let told = |key: &(u64, String)| {
                end.inbox.iter().any(|message| match message {
                    ToAgent::Passed { generation, name }
                    | ToAgent::Broken {
                        generation, name, ..
                    } => (*generation, name) == (key.0, &key.1),
                    ToAgent::Gather { generation } => *generation > key.0,
                    _ => false,
                })
            };
            for (key, until) in &end.waits {
                assert!(
                    now < *until || told(key),
                    "a barrier has a deadline: {key:?} {end:?}"
                );
            }
        }
        // Who is there is there once.
        let connections: Vec<_> = self
            .store
            .nodes
            .values()
            .filter_map(|node| node.connection)
            .collect();
        assert_eq!(
            connections.iter().collect::<BTreeSet<_>>().len(),
            connections.len()
        );
        for connection in connections {
            assert!(self.ends[&connection].open);
        }
    }

    fn check_members(&mut self, terms: &Terms, members: &[Member]) {
        let nodes: Vec<_> = members.iter().map(|member| member.info.node).collect();
        assert!(
            nodes.is_sorted_by(|a, b| a < b),
            "distinct and in order: {nodes:?}"
        );
        assert_eq!(nodes[0], 0);
        assert!((terms.fewest..=terms.most).contains(&nodes.len()));
        let holder = |node: &usize| {
            self.store.nodes[node]
                .connection
                .map(|it| (it, &self.ends[&it]))
        };
        for member in &members[1..] {
            let (connection, end) = holder(&member.info.node).expect("it is there");
            assert!(end.ready.contains(&terms.generation));
            assert_eq!(member.offer, json!([connection, terms.generation]));
        }
        // Nobody worse is taken while somebody better waits.
        let worst = nodes[1..].iter().map(|node| self.blamed[*node] >= 2).max();
        if worst == Some(true) {
            for node in (1..NODES).filter(|node| !nodes.contains(node) && self.blamed[*node] < 2) {
                let ready = self.store.nodes.contains_key(&node)
                    && holder(&node).is_some_and(|(_, end)| end.ready.contains(&terms.generation));
                assert!(!ready, "node {node} is better than one of {nodes:?}");
            }
        }
        self.gathered += 1;
        self.members = Some(nodes);
    }

    fn obey(&mut self, output: Output) {
        let (generation, members) = (self.generation, &self.members);
        match output {
            Output::Close(connection) => {
                let end = self.ends.get_mut(&connection).unwrap();
                end.open = false;
                end.answer.get_or_insert(false);
                if self.newest.get(&end.node) == Some(&connection) {
                    self.newest.remove(&end.node);
                }
                // The other end finds out.
                self.store.closed(connection, Loss::Closed);
            }
            Output::Send(connection, message) => {
                let end = self.ends.get_mut(&connection).unwrap();
                // What was said before its loss is still on its way.
                if !end.open {
                    return;
                }
                let first = matches!(message, ToAgent::Joined { .. });
                let joined = *end.answer.get_or_insert(first);
                match &message {
                    ToAgent::Joined { .. } => assert!(joined),
                    ToAgent::Start {
                        generation: started,
                        ..
                    } => {
                        assert_eq!(*started, generation);
                        assert!(members.as_ref().unwrap().contains(&end.node));
                        assert!(end.ready.contains(started), "who starts was ready for it");
                        end.started.insert(*started);
                    }
                    ToAgent::Refused(_) | ToAgent::Lost(_) | ToAgent::Beat => {}
                    _ => assert!(joined, "nothing before it has joined: {message:?}"),
                }
                if message != ToAgent::Beat {
                    end.inbox.push_back(message);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_store_keeps_its_promises(actions in actions()) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
        }
        // Everything comes to an end.
        let end = JOIN_TIMEOUT + NODE_TIMEOUT;
        world.act(&Action::Pass((end.as_millis() / TICK.as_millis()) as u64));
        prop_assert!(world.gathering.is_none());
    }
}

/// A test of promises about generations is worth something only if there are some.
#[test]
fn simulated_jobs_get_somewhere() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let mut sizes = BTreeMap::<usize, usize>::new();
    let mut starts = 0;
    for _ in 0..200 {
        let mut world = World::new();
        for action in actions().new_tree(&mut runner).unwrap().current() {
            let before = world.gathered;
            world.act(&action);
            if world.gathered > before {
                let size = world.members.as_ref().map_or(0, Vec::len);
                *sizes.entry(size).or_default() += 1;
            }
        }
        let started = world.ends.values().map(|end| end.started.len());
        starts += started.sum::<usize>();
    }
    assert!(
        (1..=3).all(|size| sizes.get(&size).is_some_and(|count| *count > 5)),
        "{sizes:?}"
    );
    assert!(starts > 20, "{starts}");
}
