//! Many nodes at once.

use std::thread;

use serde_json::json;

use super::*;

const NODES: usize = 1024;
const THREADS: usize = 4;

/// What agents of some nodes do from joining to the first barrier.
fn agents(nodes: Vec<usize>, address: SocketAddr, secret: &Secret) {
    let mut puppets: Vec<_> = nodes
        .into_iter()
        .map(|node| {
            let mut puppet = Puppet::new(address, secret);
            puppet.join(node);
            (node, puppet)
        })
        .collect();
    for (node, puppet) in &mut puppets {
        assert!(matches!(puppet.hear(), Some(ToAgent::Joined { .. })));
        assert_eq!(puppet.hear(), Some(ToAgent::Gather { generation: 1 }));
        let offer = json!({"address": "10.0.0.1", "ports": vec![1000 + *node; 8]});
        puppet.say(&FromAgent::Ready {
            generation: 1,
            offer,
        });
    }
    for (node, puppet) in &mut puppets {
        let start = ToAgent::Start {
            generation: 1,
            assignment: json!(*node),
        };
        assert_eq!(puppet.hear(), Some(start));
        let name = "started".to_owned();
        puppet.say(&FromAgent::Arrive {
            generation: 1,
            name,
            within: LONG,
        });
    }
    for (_, puppet) in &mut puppets {
        assert!(matches!(puppet.hear(), Some(ToAgent::Passed { .. })));
    }
}

fn job() -> Duration {
    let (coordinator, secret, address) = coordinator();
    let start = Instant::now();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let nodes = (1..NODES).skip(thread).step_by(THREADS).collect();
            let secret = &secret;
            scope.spawn(move || agents(nodes, address, secret));
        }
        let members = coordinator.gather(gather(1, NODES), &all).unwrap();
        assert!(members.iter().map(|it| it.info.node).eq(0..NODES));
        let assignments = (0..NODES).map(|node| json!(node)).collect();
        coordinator.start_generation(1, assignments).unwrap();
        coordinator.barrier("started", 1, LONG).unwrap();
    });
    start.elapsed()
}

#[test]
fn a_thousand_nodes_start_within_a_second() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    // Both ends of every connection are in this process.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
    let times: Vec<_> = (0..3).map(|_| job()).collect();
    println!("{NODES} nodes joined, gathered, started and met in {times:.3?}");
    let limit = if cfg!(debug_assertions) {
        LONG
    } else {
        Duration::from_secs(1)
    };
    assert!(times.iter().min() < Some(&limit), "{times:?}");
}
