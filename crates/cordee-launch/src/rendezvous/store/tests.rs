//! The store alone, with a clock that is moved by hand.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use super::*;
use crate::rendezvous::message::Refusal;

pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const JOIN_TIMEOUT: Duration = Duration::from_mins(1);
pub(super) const LAST_CALL: Duration = Duration::from_secs(5);

pub(in crate::rendezvous) fn join(node: usize, version: &str) -> FromAgent {
    FromAgent::Join {
        node,
        host: format!("h{node}"),
        workers: 8,
        payload: Value::Null,
        fingerprint: Fingerprint::new([("version", version)]),
    }
}

pub(super) fn store(expected: usize) -> Store {
    let rules = Rules {
        node_timeout: NODE_TIMEOUT,
        greeting_timeout: Duration::from_secs(5),
        expected,
    };
    let own = NodeInfo {
        node: 0,
        host: "h0".to_owned(),
        workers: 8,
        address: None,
        payload: Value::Null,
    };
    Store::new(rules, own, Fingerprint::new([("version", "1")]))
}

pub(super) fn terms(generation: u64, fewest: usize, most: usize) -> Terms {
    Terms {
        generation,
        fewest,
        most,
        last_call: LAST_CALL,
        join_timeout: JOIN_TIMEOUT,
    }
}

const ANY: &dyn Fn(&[&NodeInfo]) -> bool = &|_| true;

struct Scene {
    store: Store,
    next: Connection,
    said: BTreeMap<Connection, Vec<ToAgent>>,
    closed: Vec<Connection>,
}

impl Scene {
    fn new(expected: usize) -> Self {
        Self {
            store: store(expected),
            next: 10,
            said: BTreeMap::new(),
            closed: Vec::new(),
        }
    }

    /// With nodes 1 to `count - 1` joined, at connections 11 and up.
    fn with(count: usize) -> Self {
        let mut scene = Self::new(count);
        for node in 1..count {
            assert_eq!(scene.join(node), 10 + node as u64);
        }
        scene
    }

    fn join(&mut self, node: usize) -> Connection {
        self.ask(&join(node, "1"))
    }

    fn ask(&mut self, message: &FromAgent) -> Connection {
        self.next += 1;
        self.store.opened(self.next, None);
        self.store.heard(self.next, message.clone());
        self.next
    }

    fn ready(&mut self, connections: impl IntoIterator<Item = Connection>, generation: u64) {
        for connection in connections {
            let offer = json!(connection);
            let message = FromAgent::Ready { generation, offer };
            self.store.heard(connection, message);
        }
    }

    /// Time passes, in which these agents beat.
    fn pass(&mut self, time: Duration, beating: &[Connection]) {
        let tick = Duration::from_millis(250);
        for _ in 0..time.as_millis() / tick.as_millis() {
            self.store.at(self.store.now + tick);
            for connection in beating {
                let beat = FromAgent::Beat { status: None };
                self.store.heard(*connection, beat);
            }
            self.store.tick();
        }
    }

    fn gathered(&mut self) -> Option<Result<Vec<usize>, GatherFailure>> {
        let gathered = self.store.gathered(ANY)?;
        Some(gathered.map(|members| members.iter().map(|member| member.info.node).collect()))
    }

    /// What a connection was told since the last question; beats left out.
    fn said(&mut self, connection: Connection) -> Vec<ToAgent> {
        for output in self.store.take_outputs() {
            match output {
                Output::Send(_, ToAgent::Beat) => {}
                Output::Send(to, message) => self.said.entry(to).or_default().push(message),
                Output::Close(which) => self.closed.push(which),
            }
        }
        self.said.remove(&connection).unwrap_or_default()
    }

    fn is_closed(&mut self, connection: Connection) -> bool {
        self.said(0);
        self.closed.contains(&connection)
    }

    fn events(&mut self) -> Vec<CoordinatorEvent> {
        std::iter::from_fn(|| self.store.next_event()).collect()
    }

    /// A generation of all who joined.
    fn run(&mut self, generation: u64, connections: &[Connection]) {
        let count = connections.len() + 1;
        self.store
            .gather(terms(generation, count, count), Value::Null)
            .unwrap();
        self.ready(connections.iter().copied(), generation);
        assert!(self.gathered().unwrap().is_ok());
    }

    fn arrive(&mut self, connection: Connection, generation: u64, name: &str) {
        let message = FromAgent::Arrive {
            generation,
            name: name.to_owned(),
            within: Duration::from_secs(3),
        };
        self.store.heard(connection, message);
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_generation_from_joining_to_its_end() {
    let mut scene = Scene::new(3);
    let (second, first) = (scene.join(2), scene.join(1));
    let joined = ToAgent::Joined {
        node_timeout: NODE_TIMEOUT,
    };
    assert_eq!(scene.said(first), [joined]);
    scene.store.gather(terms(7, 3, 3), json!("own")).unwrap();
    assert_eq!(scene.said(first), [ToAgent::Gather { generation: 7 }]);
    scene.ready([second], 7);
    assert_eq!(scene.gathered(), None);
    scene.ready([first], 7);
    let members = scene.store.gathered(ANY).unwrap().unwrap();
    let offers: Vec<_> = members.iter().map(|it| (it.info.node, &it.offer)).collect();
    let (of_first, of_second) = (json!(first), json!(second));
    assert_eq!(
        offers,
        [(0, &json!("own")), (1, &of_first), (2, &of_second)]
    );

    let assignments = vec![json!(0), json!(1), json!(2)];
    assert_eq!(
        scene.store.start(6, assignments.clone()),
        Err(StartFailure::NotGathered)
    );
    scene.store.start(7, assignments).unwrap();
    scene.said(0);
    let started = |assignment| ToAgent::Start {
        generation: 7,
        assignment,
    };
    assert_eq!(scene.said(second)[2..], [started(json!(2))]);

    let stop = ToAgent::Stop { generation: 7 };
    scene.store.tell_members(6, &stop);
    assert_eq!(scene.said(first), [started(json!(1))]);
    scene.store.tell_members(7, &stop);
    assert_eq!(scene.said(first), [stop]);

    scene.events();
    for generation in [6, 7, 7] {
        let report = json!("done");
        scene
            .store
            .heard(first, FromAgent::Ended { generation, report });
    }
    let ended = CoordinatorEvent::Ended {
        node: 1,
        generation: 7,
        report: json!("done"),
    };
    assert_eq!(scene.events(), [ended]);

    scene.store.finish(75, "stopped".to_owned());
    let finish = ToAgent::Finish {
        code: 75,
        text: "stopped".to_owned(),
    };
    assert_eq!(scene.said(first), std::slice::from_ref(&finish));
    let late = scene.join(3);
    assert_eq!(scene.said(late), [finish]);
    assert!(scene.is_closed(late) && !scene.store.is_empty());
    scene.store.closed(first, Loss::Closed);
    scene.store.closed(second, Loss::Closed);
    assert!(scene.store.is_empty());
    assert_eq!(scene.events(), []);
}

#[test]
fn fewer_nodes_are_taken_after_the_last_call() {
    let mut scene = Scene::with(3);
    scene.store.gather(terms(0, 2, 4), Value::Null).unwrap();
    scene.ready([12], 0);
    scene.pass(seconds(4), &[11, 12]);
    assert_eq!(scene.gathered(), None);
    scene.pass(seconds(1), &[11, 12]);
    assert_eq!(scene.gathered(), Some(Ok(vec![0, 2])));
    // Who is ready too late waits for the next one.
    scene.ready([11, 11], 0);
    let spare = ToAgent::Spare { generation: 0 };
    assert_eq!(scene.said(11)[2..], [spare]);
    assert_eq!(scene.store.states()[1].standing, Standing::Spare);
}

#[test]
fn the_last_call_begins_again_when_nodes_are_lost() {
    let mut scene = Scene::with(3);
    scene.store.gather(terms(0, 3, 4), Value::Null).unwrap();
    scene.ready([11, 12], 0);
    scene.pass(seconds(4), &[11, 12]);
    scene.store.closed(12, Loss::Closed);
    scene.pass(seconds(4), &[11]);
    assert_eq!(scene.gathered(), None);
    let again = scene.join(2);
    assert_eq!(scene.said(again)[1..], [ToAgent::Gather { generation: 0 }]);
    scene.ready([again], 0);
    scene.pass(seconds(4), &[11, again]);
    assert_eq!(scene.gathered(), None);
    scene.pass(seconds(1), &[11, again]);
    assert_eq!(scene.gathered(), Some(Ok(vec![0, 1, 2])));
}

#[test]
fn who_waited_too_long_is_told_who_is_there_and_who_is_not() {
    let mut scene = Scene::with(4);
    scene.store.gather(terms(0, 5, 6), Value::Null).unwrap();
    scene.ready([11], 0);
    scene.store.closed(13, Loss::Closed);
    scene.pass(JOIN_TIMEOUT, &[11, 12]);
    let Some(Err(GatherFailure::Missing(attendance))) = scene.gathered() else {
        panic!("it is over");
    };
    assert_eq!(
        attendance.to_string(),
        "2 of 6 are ready (at least 5) after 60 s; ready: 0 (h0), 1 (h1); there, and not ready: 2 (h2); \
         missing: nodes 3-5; node 3 (h3) was lost: its connection was closed"
    );
    assert_eq!(scene.gathered(), Some(Err(GatherFailure::Over)));
}

#[test]
fn spares_take_the_places_of_lost_and_of_bad_nodes() {
    let mut scene = Scene::with(4);
    scene.store.gather(terms(0, 3, 3), Value::Null).unwrap();
    scene.ready([11, 12, 13], 0);
    assert_eq!(scene.gathered(), Some(Ok(vec![0, 1, 2])));
    assert_eq!(scene.said(13)[2..], [ToAgent::Spare { generation: 0 }]);
    scene.store.closed(11, Loss::Closed);
    scene.store.gather(terms(1, 3, 3), Value::Null).unwrap();
    scene.ready([12, 13], 1);
    assert_eq!(scene.gathered(), Some(Ok(vec![0, 2, 3])));
    // Back again, and not to blame often enough.
    let first = scene.join(1);
    scene.store.blame(2);
    for (generation, members) in [(2, [0, 1, 2]), (3, [0, 1, 3])] {
        scene
            .store
            .gather(terms(generation, 3, 3), Value::Null)
            .unwrap();
        scene.ready([first, 12, 13], generation);
        assert_eq!(scene.gathered(), Some(Ok(members.to_vec())));
        scene.store.blame(2);
    }
    // Better a bad one than none.
    scene.store.closed(13, Loss::Closed);
    scene.store.gather(terms(4, 3, 3), Value::Null).unwrap();
    scene.ready([first, 12], 4);
    assert_eq!(scene.gathered(), Some(Ok(vec![0, 1, 2])));
}

#[test]
fn nodes_that_do_not_fit_are_left_out_at_the_last_call() {
    let even: &dyn Fn(&[&NodeInfo]) -> bool = &|nodes| nodes.len() % 2 == 0;
    let nodes = |found: Option<Result<Vec<Member>, GatherFailure>>| {
        found.map(|it| {
            it.unwrap()
                .iter()
                .map(|it| it.info.node)
                .collect::<Vec<_>>()
        })
    };
    let mut scene = Scene::with(3);
    scene.store.gather(terms(0, 1, 3), Value::Null).unwrap();
    scene.ready([11, 12], 0);
    assert_eq!(nodes(scene.store.gathered(even)), None);
    scene.pass(LAST_CALL, &[11, 12]);
    assert_eq!(nodes(scene.store.gathered(even)), Some(vec![0, 1]));

    // Another of the same number is better than fewer.
    let without_1: &dyn Fn(&[&NodeInfo]) -> bool = &|nodes| nodes.iter().all(|it| it.node != 1);
    scene.store.gather(terms(1, 1, 2), Value::Null).unwrap();
    scene.ready([11, 12], 1);
    scene.pass(LAST_CALL, &[11, 12]);
    assert_eq!(nodes(scene.store.gathered(without_1)), Some(vec![0, 2]));

    scene.store.gather(terms(2, 1, 3), Value::Null).unwrap();
    scene.ready([11, 12], 2);
    scene.pass(JOIN_TIMEOUT, &[11, 12]);
    let failure = scene.store.gathered(&|_| false);
    assert!(matches!(failure, Some(Err(GatherFailure::NoFit(_)))));
}

fn odd_nodes(scene: &mut Scene) -> Option<Vec<usize>> {
    match scene.gathered()? {
        Err(GatherFailure::Mismatch(mismatch)) => {
            Some(mismatch.odd.iter().map(|(node, _)| *node).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_odd_node_is_refused_and_named_on_both_sides() {
    let mut scene = Scene::new(3);
    scene.store.gather(terms(0, 3, 3), Value::Null).unwrap();
    let odd = scene.ask(&join(1, "2"));
    assert_eq!(scene.said(odd), [], "who is odd is not known yet");
    scene.join(2);
    assert_eq!(odd_nodes(&mut scene), Some(vec![1]));
    let said = scene.said(odd);
    let [ToAgent::Refused(Refusal::Mismatch(mismatch))] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert_eq!(mismatch.odd, [(1, "h1".to_owned())]);
    assert!(scene.is_closed(odd));
}

#[test]
fn the_coordinator_may_be_the_odd_one() {
    let mut scene = Scene::new(3);
    scene.store.gather(terms(0, 3, 3), Value::Null).unwrap();
    let others = [scene.ask(&join(1, "2")), scene.ask(&join(2, "2"))];
    assert_eq!(odd_nodes(&mut scene), Some(vec![0]));
    for other in others {
        assert_eq!(scene.said(other).len(), 1);
    }
}

#[test]
fn who_is_odd_is_not_waited_for_long() {
    let mut scene = Scene::new(8);
    scene.store.gather(terms(0, 8, 8), Value::Null).unwrap();
    scene.ask(&join(1, "2"));
    scene.pass(seconds(2), &[]);
    assert_eq!(scene.gathered(), None);
    scene.pass(seconds(1), &[]);
    assert_eq!(
        odd_nodes(&mut scene),
        Some(vec![]),
        "of two nodes neither is odd"
    );
}

#[test]
fn once_a_generation_stood_an_odd_node_is_refused_alone() {
    let mut scene = Scene::with(2);
    scene.run(0, &[11]);
    scene.store.gather(terms(1, 2, 3), Value::Null).unwrap();
    let odd = scene.ask(&join(2, "2"));
    assert!(matches!(scene.said(odd).as_slice(), [ToAgent::Refused(_)]));
    scene.ready([11], 1);
    scene.pass(LAST_CALL, &[11]);
    assert_eq!(scene.gathered(), Some(Ok(vec![0, 1])));
}

#[test]
fn an_index_is_its_holders_unless_that_is_gone_or_silent() {
    let taken = |node| {
        let host = format!("h{node}");
        let address = None;
        ToAgent::Refused(Refusal::Taken { host, address })
    };
    let mut scene = Scene::with(2);
    let zero = scene.join(0);
    assert_eq!(scene.said(zero), [taken(0)]);
    // The holder is heard.
    let second = scene.join(1);
    assert_eq!(scene.said(second), []);
    scene.pass(seconds(1), &[11]);
    assert_eq!(scene.said(second), [taken(1)]);
    // It goes.
    let third = scene.join(1);
    scene.store.closed(11, Loss::Closed);
    assert!(matches!(scene.said(third)[..], [ToAgent::Joined { .. }]));
    // It is silent.
    let fourth = scene.join(1);
    scene.pass(seconds(2), &[]);
    assert_eq!(scene.said(fourth), []);
    scene.pass(seconds(1), &[]);
    assert!(matches!(scene.said(fourth)[..], [ToAgent::Joined { .. }]));
    assert_eq!(scene.said(third), [ToAgent::Lost(Loss::Replaced)]);
    assert!(scene.is_closed(third));
    let lost: Vec<_> = scene.events();
    assert!(lost.contains(&CoordinatorEvent::Lost {
        node: 1,
        member: false,
        why: Loss::Replaced
    }));
}

#[test]
fn silence_is_a_loss_and_says_so() {
    let mut scene = Scene::with(3);
    scene.run(0, &[11, 12]);
    scene.events();
    scene.pass(seconds(9), &[11]);
    assert_eq!(scene.events(), []);
    scene.pass(seconds(1), &[11]);
    let why = Loss::Silent {
        after: NODE_TIMEOUT,
    };
    let lost = CoordinatorEvent::Lost {
        node: 2,
        member: true,
        why: why.clone(),
    };
    assert_eq!(scene.events(), [lost]);
    assert_eq!(scene.said(12).last(), Some(&ToAgent::Lost(why)));
    assert!(scene.is_closed(12));
    let started = scene.store.start(0, vec![Value::Null; 3]);
    assert!(matches!(started, Err(StartFailure::Fallen(2, _))));
}

#[test]
fn who_gives_the_coordinator_up_is_lost_and_says_why() {
    let mut scene = Scene::with(2);
    scene.run(1, &[11]);
    scene.events();
    let after = NODE_TIMEOUT;
    scene.store.heard(11, FromAgent::GiveUp { after });
    let lost = CoordinatorEvent::Lost {
        node: 1,
        member: true,
        why: Loss::GaveUp { after },
    };
    assert_eq!(scene.events(), [lost]);
    assert!(scene.is_closed(11));
    // It comes back like anybody.
    assert_eq!(scene.join(1), 12);
    assert_eq!(scene.events(), [CoordinatorEvent::Joined { node: 1 }]);
}

#[test]
fn what_is_older_than_the_generation_is_dropped() {
    let mut scene = Scene::with(3);
    scene.run(4, &[11, 12]);
    scene.store.gather(terms(5, 3, 3), Value::Null).unwrap();
    scene.ready([11, 12], 4);
    assert_eq!(scene.gathered(), None);
    scene.ready([11, 12], 5);
    assert!(scene.gathered().is_some());
    for generation in [4, 5, 6] {
        let again = scene.store.gather(terms(generation, 1, 1), Value::Null);
        assert_eq!(again.is_ok(), generation == 6);
    }
}

#[test]
fn a_barrier_is_passed_by_all_or_broken_for_all() {
    let mut scene = Scene::with(3);
    scene.run(1, &[11, 12]);
    let within = seconds(3);
    let name = "loaded".to_owned();
    scene.said(0);
    scene.said.clear();

    scene.arrive(11, 1, "loaded");
    scene.arrive(12, 0, "loaded");
    scene.store.arrive(0, 1, name.clone(), within);
    assert_eq!(scene.store.own_barrier(1, "loaded"), None);
    scene.arrive(12, 1, "loaded");
    let passed = ToAgent::Passed {
        generation: 1,
        name: name.clone(),
    };
    assert_eq!(scene.said(11), std::slice::from_ref(&passed));
    assert_eq!(scene.said(12), [passed]);
    assert_eq!(scene.store.own_barrier(1, "loaded"), Some(Ok(())));

    // Once more under the same name, and one does not come in time.
    scene.arrive(11, 1, "loaded");
    scene.store.arrive(0, 1, name.clone(), seconds(9));
    scene.pass(within, &[11, 12]);
    let Some(Err(why)) = scene.store.own_barrier(1, "loaded") else {
        panic!("it is broken");
    };
    assert_eq!((why.missing.as_slice(), why.waited), (&[2][..], within));
    let broken = ToAgent::Broken {
        generation: 1,
        name,
        why,
    };
    assert_eq!(scene.said(11), std::slice::from_ref(&broken));
    // Who comes too late is told the same.
    scene.arrive(12, 1, "loaded");
    assert_eq!(scene.said(12), [broken]);

    // A lost member is not waited for.
    scene.arrive(11, 1, "saved");
    scene.store.closed(12, Loss::Closed);
    let said = scene.said(11);
    let [ToAgent::Broken { why, .. }] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert_eq!(
        (&why.missing[..], &why.lost),
        (&[0, 2][..], &Some((2, Loss::Closed)))
    );
    scene.store.arrive(0, 1, "next".to_owned(), within);
    assert!(matches!(scene.store.own_barrier(1, "next"), Some(Err(_))));
    // The generation is over.
    scene.store.gather(terms(2, 1, 3), Value::Null).unwrap();
    scene.store.arrive(0, 1, "old".to_owned(), within);
    assert!(matches!(scene.store.own_barrier(1, "old"), Some(Err(_))));
}

#[test]
fn who_proves_that_it_belongs_here_and_says_nothing_is_closed() {
    let mut scene = Scene::new(2);
    scene.store.opened(5, None);
    scene.store.opened(6, None);
    scene.store.heard(6, FromAgent::StopRequested { count: 1 });
    assert!(scene.is_closed(6) && !scene.is_closed(5));
    scene.pass(seconds(5), &[]);
    assert!(scene.is_closed(5) && scene.store.is_empty());
    assert_eq!(scene.events(), []);
}

#[test]
fn the_status_page_says_how_nodes_stand() {
    let mut scene = Scene::with(4);
    scene.store.gather(terms(0, 2, 2), Value::Null).unwrap();
    scene.ready([11, 12], 0);
    scene.gathered().unwrap().unwrap();
    let status = Some(json!({"step": 7}));
    let beat = |status| FromAgent::Beat { status };
    scene.store.heard(11, beat(status.clone()));
    scene.pass(seconds(2), &[]);
    scene.store.heard(12, beat(None));
    scene.store.closed(13, Loss::Closed);
    let states = scene.store.states();
    let standings: Vec<_> = states
        .iter()
        .map(|it| (&it.standing, it.silent.as_secs()))
        .collect();
    assert_eq!(
        standings,
        [
            (&Standing::Member, 0),
            (&Standing::Member, 2),
            (&Standing::Spare, 0),
            (&Standing::Lost(Loss::Closed), 2)
        ]
    );
    assert_eq!(states[1].status, status);
}
