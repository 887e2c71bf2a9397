//! Jobs from joining to their end, as callers see them.

use std::thread;

use serde_json::json;

use super::*;

fn expect(agent: &Agent, event: &AgentEvent) {
    assert_eq!(agent.next(LONG).as_ref(), Some(event));
}

#[test]
fn a_job_of_three_nodes_from_joining_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meeting.json");
    let agent = |node| {
        let options = joining(node, Meet::File(path.clone()));
        move || {
            // The file is not there yet.
            let agent = Agent::join(&options).unwrap();
            expect(&agent, &AgentEvent::Gather { generation: 4 });
            agent.ready(4, json!(format!("offer of {node}"))).unwrap();
            let assignment = json!(node * 10);
            expect(
                &agent,
                &AgentEvent::Start {
                    generation: 4,
                    assignment,
                },
            );
            agent.barrier("started", 4, LONG).unwrap();
            agent.beat(json!({ "step": node }));
            if node == 1 {
                agent.stop_requested(1).unwrap();
            }
            expect(&agent, &AgentEvent::Stop { generation: 4 });
            expect(
                &agent,
                &AgentEvent::End {
                    generation: 4,
                    look: true,
                },
            );
            agent.ended(4, json!("done")).unwrap();
            let text = "stopped on request".to_owned();
            expect(&agent, &AgentEvent::Finish { code: 75, text });
            let error = agent.ended(4, json!("again")).unwrap_err();
            assert_eq!(error.exit_code(), 75);
        }
    };
    let threads: Vec<_> = [1, 2].map(agent).into_iter().map(thread::spawn).collect();
    let secret = Secret::random().unwrap();
    let coordinator = Coordinator::start(CoordinatorOptions {
        bind: None,
        meeting_file: Some(path.clone()),
        host_name: Some("localhost".to_owned()),
        ..options(&secret)
    })
    .unwrap();
    assert!(
        coordinator
            .addresses()
            .contains(&format!("localhost:{}", coordinator.port()))
    );
    let members = coordinator.gather(gather(4, 3), &all).unwrap();
    let offers: Vec<_> = members.iter().map(|it| it.offer.clone()).collect();
    assert_eq!(
        offers,
        [Value::Null, json!("offer of 1"), json!("offer of 2")]
    );
    coordinator
        .start_generation(4, vec![json!(0), json!(10), json!(20)])
        .unwrap();
    coordinator.barrier("started", 4, LONG).unwrap();
    let asked = |it: &_| matches!(it, CoordinatorEvent::StopRequested { node: 1, count: 1 });
    wait_for(&coordinator, asked);
    let until = Instant::now() + LONG;
    while coordinator.nodes()[2].status != Some(json!({ "step": 2 })) {
        assert!(Instant::now() < until, "the status comes with a beat");
        thread::yield_now();
    }
    coordinator.stop(4);
    coordinator.end(4, true);
    let mut ended: Vec<_> = (0..2)
        .map(|_| {
            wait_for(&coordinator, |it| {
                matches!(it, CoordinatorEvent::Ended { .. })
            })
        })
        .collect();
    ended.sort_by_key(|it| format!("{it:?}"));
    let report = |node| CoordinatorEvent::Ended {
        node,
        generation: 4,
        report: json!("done"),
    };
    assert_eq!(ended, [report(1), report(2)]);
    coordinator.finish(75, "stopped on request");
    assert!(!path.exists());
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_node_that_left_joins_again_and_is_a_member_of_the_next_generation() {
    let (coordinator, secret, address) = coordinator();
    for generation in 0..3 {
        let agent = Agent::join(&joining(1, at(address, &secret))).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                expect(&agent, &AgentEvent::Gather { generation });
                agent.ready(generation, Value::Null).unwrap();
            });
            coordinator.gather(gather(generation, 2), &all).unwrap();
        });
        drop(agent);
        let lost = wait_for(&coordinator, |it| {
            matches!(it, CoordinatorEvent::Lost { .. })
        });
        let why = Loss::Closed;
        assert_eq!(
            lost,
            CoordinatorEvent::Lost {
                node: 1,
                member: true,
                why
            }
        );
        let error = coordinator
            .start_generation(generation, vec![Value::Null; 2])
            .unwrap_err();
        assert!(
            matches!(error, RendezvousError::MemberLost { node: 1, .. }),
            "{error}"
        );
    }
}

#[test]
fn silence_is_found_out_on_both_sides() {
    let secret = Secret::random().unwrap();
    let node_timeout = Duration::from_millis(300);
    let quick = CoordinatorOptions {
        node_timeout,
        ..options(&secret)
    };
    let coordinator = Coordinator::start(quick).unwrap();
    // One that beats, and one that does not.
    let agent = Agent::join(&joining(1, at(place(&coordinator), &secret))).unwrap();
    let mut silent = Puppet::new(place(&coordinator), &secret);
    silent.join(2);
    let lost = wait_for(&coordinator, |it| {
        matches!(it, CoordinatorEvent::Lost { .. })
    });
    let why = Loss::Silent {
        after: node_timeout,
    };
    assert_eq!(
        lost,
        CoordinatorEvent::Lost {
            node: 2,
            member: false,
            why: why.clone()
        }
    );
    assert_eq!(agent.next(Duration::ZERO), None);
    assert!(matches!(silent.hear(), Some(ToAgent::Joined { .. })));
    assert_eq!(silent.hear(), Some(ToAgent::Lost(why.clone())));
    assert_eq!(silent.hear(), None);

    // The store's thread stands still, and the agent hears nothing.
    let held = coordinator.hold();
    expect(&agent, &AgentEvent::Lost { why });
    let error = agent.ready(0, Value::Null).unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    drop(held);
}

#[test]
fn a_coordinator_that_was_suspended_takes_nobody_for_lost() {
    let secret = Secret::random().unwrap();
    let node_timeout = Duration::from_millis(500);
    let quick = CoordinatorOptions {
        node_timeout,
        ..options(&secret)
    };
    let coordinator = Coordinator::start(quick).unwrap();
    let mut puppet = Puppet::new(place(&coordinator), &secret);
    puppet.join(1);
    wait_for(&coordinator, |it| {
        matches!(it, CoordinatorEvent::Joined { .. })
    });
    let held = coordinator.hold();
    // What passes here is time that nobody watches.
    thread::sleep(node_timeout * 3);
    drop(held);
    let until = Instant::now() + node_timeout * 2;
    while Instant::now() < until {
        puppet.say(&FromAgent::Beat { status: None });
        assert_eq!(coordinator.next_event(node_timeout / 10).unwrap(), None);
    }
}

#[test]
fn a_barrier_that_not_all_come_to_names_who_did_not() {
    let (coordinator, secret, address) = coordinator();
    let agents = [1, 2].map(|node| Agent::join(&joining(node, at(address, &secret))).unwrap());
    thread::scope(|scope| {
        for agent in &agents {
            scope.spawn(|| {
                expect(agent, &AgentEvent::Gather { generation: 1 });
                agent.ready(1, Value::Null).unwrap();
            });
        }
        coordinator.gather(gather(1, 3), &all).unwrap();
    });
    thread::scope(|scope| {
        let at_agent = scope.spawn(|| agents[0].barrier("loaded", 1, LONG));
        let short = Duration::from_millis(200);
        let at_coordinator = coordinator.barrier("loaded", 1, short).unwrap_err();
        for error in [at_coordinator, at_agent.join().unwrap().unwrap_err()] {
            let text = error.to_string();
            assert!(
                text.contains("`loaded` of generation 1") && text.contains("node 2 has not come"),
                "{text}"
            );
            assert_eq!(error.exit_code(), 96);
        }
    });
    let error = agents[0].barrier("loaded", 0, LONG).unwrap_err();
    assert!(
        matches!(error, RendezvousError::Stale { generation: 0 }),
        "{error}"
    );
}

#[test]
fn nodes_that_are_not_alike_are_told_on_both_sides() {
    let (coordinator, secret, address) = coordinator();
    let odd = JoinOptions {
        fingerprint: fingerprint("2"),
        ..joining(1, at(address, &secret))
    };
    let agent = thread::spawn(move || Agent::join(&odd).err().unwrap());
    let errors = [
        coordinator.gather(gather(0, 2), &all).unwrap_err(),
        agent.join().unwrap(),
    ];
    for error in errors {
        assert_eq!(
            error.to_string(),
            "the nodes are not alike: version is 1 on node 0, 2 on node 1"
        );
        assert_eq!(error.exit_code(), 3);
        assert!(error.hint().is_some());
    }
}

#[test]
fn a_node_index_is_given_once() {
    let (coordinator, secret, address) = coordinator();
    let _first = Agent::join(&joining(1, at(address, &secret))).unwrap();
    let error = Agent::join(&joining(1, at(address, &secret)))
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "node index 1 is taken: the agent on h1 (127.0.0.1) has it, and is there"
    );
    let error = Agent::join(&joining(0, at(address, &secret)))
        .err()
        .unwrap();
    assert!(error.to_string().contains("h0, the coordinator"), "{error}");
    assert_eq!(error.exit_code(), 2);
    drop(coordinator);
}

#[test]
fn what_is_too_long_for_a_message_is_refused_where_it_is_made() {
    let (coordinator, secret, address) = coordinator();
    let agent = Agent::join(&joining(1, at(address, &secret))).unwrap();
    let long = || json!("x".repeat(5 << 20));
    let error = agent.ended(0, long()).unwrap_err();
    assert!(matches!(error, RendezvousError::TooLong { .. }), "{error}");
    let error = coordinator
        .start_generation(0, vec![Value::Null, long()])
        .unwrap_err();
    assert!(matches!(error, RendezvousError::TooLong { .. }), "{error}");
    agent.ended(0, Value::Null).unwrap();
}
