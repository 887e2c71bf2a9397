//! Coordinator and agents over loopback.

mod crowd;
mod finding;
mod jobs;
mod strangers;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use cordee_protocol::Secret;
use serde_json::Value;

use super::{
    dial::{Line, dial},
    message::{FromAgent, ToAgent},
    *,
};

/// Longer than anything takes here that does not fail.
const LONG: Duration = Duration::from_secs(20);

fn fingerprint(version: &str) -> Fingerprint {
    Fingerprint::new([("version", version)])
}

fn options(secret: &Secret) -> CoordinatorOptions {
    CoordinatorOptions {
        job: "job".to_owned(),
        secret: secret.clone(),
        bind: Some((Ipv4Addr::LOCALHOST, 0).into()),
        host_name: None,
        meeting_file: None,
        host: "h0".to_owned(),
        workers: 1,
        payload: Value::Null,
        fingerprint: fingerprint("1"),
        expected: 2,
        node_timeout: Duration::from_secs(10),
        greeting_timeout: Duration::from_secs(5),
    }
}

/// A coordinator, its job's secret and where it is.
fn coordinator() -> (Coordinator, Secret, SocketAddr) {
    let secret = Secret::random().unwrap();
    let coordinator = Coordinator::start(options(&secret)).unwrap();
    let address = place(&coordinator);
    (coordinator, secret, address)
}

fn place(coordinator: &Coordinator) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, coordinator.port()).into()
}

fn joining(node: usize, meet: Meet) -> JoinOptions {
    JoinOptions {
        job: "job".to_owned(),
        node,
        host: format!("h{node}"),
        workers: 1,
        payload: Value::Null,
        fingerprint: fingerprint("1"),
        meet,
        join_timeout: LONG,
    }
}

fn at(address: SocketAddr, secret: &Secret) -> Meet {
    Meet::At {
        address: address.to_string(),
        secret: secret.clone(),
    }
}

fn gather(generation: u64, nodes: usize) -> Gather {
    Gather {
        generation,
        fewest: nodes,
        most: nodes,
        last_call: Duration::ZERO,
        join_timeout: LONG,
        offer: Value::Null,
    }
}

fn all(_: &[&NodeInfo]) -> bool {
    true
}

/// Waits for an event of the coordinator; others are passed over.
fn wait_for(
    coordinator: &Coordinator,
    wanted: impl Fn(&CoordinatorEvent) -> bool,
) -> CoordinatorEvent {
    let until = Instant::now() + LONG;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let event = coordinator
            .next_event(left)
            .unwrap()
            .expect("it comes in time");
        if wanted(&event) {
            return event;
        }
    }
}

/// An agent's connection without an agent: it does what the test does, and nothing else.
struct Puppet(Line);

impl Puppet {
    fn new(address: SocketAddr, secret: &Secret) -> Self {
        let line = dial(address, secret, LONG).unwrap();
        line.receiving.stream.set_read_timeout(Some(LONG)).unwrap();
        Self(line)
    }

    fn join(&mut self, node: usize) {
        self.say(&FromAgent::Join {
            node,
            host: format!("h{node}"),
            workers: 1,
            payload: Value::Null,
            fingerprint: fingerprint("1"),
        });
    }

    fn say(&mut self, message: &FromAgent) {
        self.0.sending.send(message).unwrap().unwrap();
    }

    /// The next message that is no beat; `None` where the connection is closed.
    fn hear(&mut self) -> Option<ToAgent> {
        loop {
            match self.0.receiving.take().unwrap() {
                Some(ToAgent::Beat) => {}
                Some(message) => return Some(message),
                None => match self.0.receiving.wait() {
                    Ok(came) => assert!(came, "an answer comes in time"),
                    Err(_) => return None,
                },
            }
        }
    }
}
