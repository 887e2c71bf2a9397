//! Who does not belong to the job, and who does and behaves badly: none of them holds up the others.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use cordee_protocol::{Dialing, HELLO_BYTES, WELCOME_BYTES};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::json;

use super::*;

/// Whether the coordinator closes a connection, whatever it says before.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// What is told of strangers, as soon as anything is.
fn told_of_strangers(coordinator: &Coordinator) -> String {
    let until = Instant::now() + LONG;
    loop {
        if let Some(told) = coordinator.strangers() {
            return told;
        }
        assert!(Instant::now() < until, "strangers are counted");
        thread::yield_now();
    }
}

/// That the coordinator still serves a normal agent.
fn serves(coordinator: &Coordinator, address: SocketAddr, secret: &Secret, node: usize) {
    let start = Instant::now();
    let agent = Agent::join(&joining(node, at(address, secret))).unwrap();
    println!("joined in {:.3?}", start.elapsed());
    drop(agent);
    let gone = |it: &_| matches!(it, CoordinatorEvent::Lost { node: lost, .. } if *lost == node);
    wait_for(coordinator, gone);
}

#[test]
fn who_does_not_know_the_secret_is_refused_and_counted() {
    let (coordinator, secret, address) = coordinator();
    assert!(coordinator.strangers().is_none());
    let told = dial(address, &Secret::random().unwrap(), LONG)
        .err()
        .unwrap();
    assert!(told.contains("does not know this job's secret"), "{told}");
    let told = told_of_strangers(&coordinator);
    assert!(told.ends_with("it has another secret"), "{told}");
    // Whoever answers proves first that it knows the secret; who only claims to fails at its own proof.
    let mut liar = TcpStream::connect(address).unwrap();
    let hello = Dialing::new(&secret).unwrap().hello();
    liar.write_all(&hello).unwrap();
    liar.write_all(&[7; 32]).unwrap();
    assert!(is_closed(&mut liar));
    let mut web = TcpStream::connect(address).unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nHost: node-a\r\nAccept: */*\r\n\r\n")
        .unwrap();
    assert!(is_closed(&mut web));
    serves(&coordinator, address, &secret, 1);
    let told = told_of_strangers(&coordinator);
    assert!(
        told.contains("connections were refused, the last from 127.0.0.1: "),
        "{told}"
    );
}

#[test]
fn a_recorded_connection_opens_nothing() {
    let (coordinator, secret, address) = coordinator();
    let mut stream = TcpStream::connect(address).unwrap();
    let dialing = Dialing::new(&secret).unwrap();
    let hello = dialing.hello();
    stream.write_all(&hello).unwrap();
    let mut welcome = [0; WELCOME_BYTES];
    stream.read_exact(&mut welcome).unwrap();
    let (proof, mut sealer, _) = dialing.finish(&welcome).ok().unwrap();
    let join = super::super::store::tests::join(1, "1");
    let join = serde_json::to_string(&join).unwrap();
    let rest = [&proof[..], &sealer.frame(join.as_bytes())].concat();
    stream.write_all(&rest).unwrap();
    let joined = |it: &_| {
        matches!(
            it,
            CoordinatorEvent::Joined { .. } | CoordinatorEvent::Refused { .. }
        )
    };
    // It is understood, unlike what is replayed.
    let mut replayed = TcpStream::connect(address).unwrap();
    replayed.write_all(&[&hello[..], &rest].concat()).unwrap();
    assert!(is_closed(&mut replayed));
    wait_for(&coordinator, joined);
    assert_eq!(coordinator.next_event(Duration::ZERO).unwrap(), None);
    assert!(told_of_strangers(&coordinator).starts_with("1 connection"));
}

#[test]
fn thousands_of_half_open_greetings_keep_nobody_out() {
    let secret = Secret::random().unwrap();
    // They are not got rid of by their deadline.
    let patient = CoordinatorOptions {
        greeting_timeout: LONG * 3,
        ..options(&secret)
    };
    let coordinator = Coordinator::start(patient).unwrap();
    let address = place(&coordinator);
    let hello = Dialing::new(&secret).unwrap().hello();
    let open = |place: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        // Nothing, part of a greeting, or all of it but the proof.
        let len = [0, 5, HELLO_BYTES][place % 3];
        stream.write_all(&hello[..len]).unwrap();
        stream
    };
    let strangers: Vec<_> = (0..2500).map(open).collect();
    serves(&coordinator, address, &secret, 1);
    told_of_strangers(&coordinator);
    drop(strangers);
}

#[test]
fn half_open_greetings_have_a_deadline() {
    let secret = Secret::random().unwrap();
    let greeting_timeout = Duration::from_millis(200);
    let quick = CoordinatorOptions {
        greeting_timeout,
        ..options(&secret)
    };
    let coordinator = Coordinator::start(quick).unwrap();
    let mut silent = TcpStream::connect(place(&coordinator)).unwrap();
    assert!(is_closed(&mut silent));
    // Nor may who has greeted keep quiet about who it is.
    let mut greeted = Puppet::new(place(&coordinator), &secret);
    assert_eq!(greeted.hear(), None);
}

#[test]
fn absurd_lengths_and_messages_of_a_member_end_its_connection_alone() {
    let (coordinator, secret, address) = coordinator();
    let witness = Agent::join(&joining(9, at(address, &secret))).unwrap();
    let lost = |it: &_| matches!(it, CoordinatorEvent::Lost { .. });
    for (bytes, told) in [
        (vec![0xff; 64], "a frame of 4294967295 bytes"),
        (vec![1; 256 << 10], "and at most"),
        (vec![0; 64], "frame 1 is not what was sent"),
    ] {
        let mut puppet = Puppet::new(address, &secret);
        puppet.join(1);
        let mut stream = puppet.0.receiving.stream.try_clone().unwrap();
        let _ = stream.write_all(&bytes);
        let CoordinatorEvent::Lost { node: 1, why, .. } = wait_for(&coordinator, lost) else {
            panic!("it is lost");
        };
        assert!(why.to_string().contains(told), "{why}");
    }
    assert_eq!(witness.next(Duration::ZERO), None);
    assert_eq!(
        coordinator
            .nodes()
            .iter()
            .filter(|it| it.standing == Standing::Waiting)
            .count(),
        2
    );
}

/// Ends what runs beside a test, however the test ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_does_not_read_is_lost_and_the_others_are_served_meanwhile() {
    let (coordinator, secret, address) = coordinator();
    let (over, newest) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut deaf = Puppet::new(address, &secret);
    deaf.join(1);
    let agent = Agent::join(&joining(2, at(address, &secret))).unwrap();
    let bulk = json!("x".repeat(3 << 20));
    thread::scope(|scope| {
        let ending = Over(&over);
        scope.spawn(|| {
            // Says what an agent says, and hears nothing.
            let mut said = true;
            while said && !over.load(Ordering::Relaxed) {
                let generation = newest.load(Ordering::Relaxed);
                let offer = Value::Null;
                let ready = FromAgent::Ready { generation, offer };
                said = deaf.0.sending.send(&ready).unwrap().is_ok();
                thread::sleep(Duration::from_millis(1));
            }
        });
        let served = scope.spawn(|| {
            let mut started = Vec::new();
            loop {
                match agent.next(LONG) {
                    Some(AgentEvent::Gather { generation }) => {
                        agent.ready(generation, Value::Null).unwrap();
                    }
                    Some(AgentEvent::Start { generation, .. }) => started.push(generation),
                    Some(AgentEvent::Spare { .. }) => {}
                    Some(AgentEvent::Finish { .. }) => return started,
                    other => panic!("{other:?}"),
                }
            }
        });
        let mut started = Vec::new();
        let why = (1..1000).find_map(|generation| {
            newest.store(generation, Ordering::Relaxed);
            let some = Gather {
                fewest: 2,
                last_call: Duration::from_millis(200),
                ..gather(generation, 3)
            };
            let members = coordinator.gather(some, &all).unwrap();
            let assignments = vec![bulk.clone(); members.len()];
            let whole = coordinator
                .start_generation(generation, assignments)
                .is_ok();
            if whole && members.iter().any(|member| member.info.node == 2) {
                started.push(generation);
            }
            while let Some(event) = coordinator.next_event(Duration::from_millis(5)).unwrap() {
                if let CoordinatorEvent::Lost { node, why, .. } = event {
                    assert_eq!(node, 1);
                    return Some(why);
                }
            }
            None
        });
        assert_eq!(why, Some(Loss::DoesNotRead));
        coordinator.finish(0, "done");
        assert_eq!(served.join().unwrap(), started);
        drop(ending);
    });
}

#[test]
fn random_bytes_at_any_stage_disturb_nobody() {
    let (coordinator, secret, address) = coordinator();
    let witness = Agent::join(&joining(9, at(address, &secret))).unwrap();
    let mut runner = TestRunner::deterministic();
    let bytes = prop::collection::vec(any::<u8>(), 0..400);
    let random = |runner: &mut TestRunner| bytes.new_tree(runner).unwrap().current();
    for round in 0..600 {
        let noise = random(&mut runner);
        let mut stream = TcpStream::connect(address).unwrap();
        let dialing = Dialing::new(&secret).unwrap();
        match round % 4 {
            // From the start; after the hello; as bytes among frames; as a message in a right frame.
            0 => {}
            1 => stream.write_all(&dialing.hello()).unwrap(),
            stage => {
                stream.write_all(&dialing.hello()).unwrap();
                let mut welcome = [0; WELCOME_BYTES];
                stream.read_exact(&mut welcome).unwrap();
                let (proof, mut sealer, _) = dialing.finish(&welcome).ok().unwrap();
                stream.write_all(&proof).unwrap();
                if stage == 3 {
                    let _ = stream.write_all(&sealer.frame(&noise));
                }
            }
        }
        let _ = stream.write_all(&noise);
    }
    serves(&coordinator, address, &secret, 1);
    assert_eq!(witness.next(Duration::ZERO), None);
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(
                witness.next(LONG),
                Some(AgentEvent::Gather { generation: 1 })
            );
            witness.ready(1, Value::Null).unwrap();
        });
        coordinator.gather(gather(1, 2), &all).unwrap();
    });
}
