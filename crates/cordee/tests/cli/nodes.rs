//! A run on several nodes, each an agent of its own: the bits of one machine, whatever falls and comes back.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fixture::{Finished, Fixture};

/// Long enough that something can happen before the end; patience that a test can wait for.
const LONG: [&str; 10] = [
    "--set",
    "train.steps=600",
    "--set",
    "launch.node_timeout=4s",
    "--set",
    "launch.last_call=1s",
    "--set",
    "launch.phase_timeout=20s",
    "--set",
    "parallel.workers=2",
];

/// The same run on one node.
const WHOLE: [&str; 4] = ["--set", "train.steps=600", "--set", "parallel.workers=4"];

/// An agent, left running; killed with its ranks if the test fails.
struct Agent(Option<Child>);

impl Agent {
    fn start(fixture: &Fixture, nnodes: &str, node: usize, more: &[&str]) -> Self {
        let node = node.to_string();
        let place = ["--nnodes", nnodes, "--node-rank", &node];
        Self(Some(
            fixture.start("run", &[&place[..], &LONG[..], more].concat()),
        ))
    }

    fn pid(&self) -> u64 {
        self.0.as_ref().unwrap().id().into()
    }

    fn end(mut self) -> Finished {
        Finished::from(self.0.take().unwrap().wait_with_output().unwrap())
    }

    fn kill(mut self) {
        let mut child = self.0.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn signal(pid: u64, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn agents(fixture: &Fixture, nnodes: &str, count: usize, more: &[&str]) -> Vec<Agent> {
    (0..count)
        .map(|node| Agent::start(fixture, nnodes, node, more))
        .collect()
}

/// The process of a rank of the run in this folder.
fn pid(fixture: &Fixture, rank: usize) -> u64 {
    let folder = fixture.path(".").canonicalize().unwrap();
    let is_it = |pid: &u64| {
        let of = |name: &str| format!("/proc/{pid}/{name}");
        let environment = fs::read(of("environ")).unwrap_or_default();
        let rank = format!("RANK={rank}");
        let words = fs::read(of("cmdline")).unwrap_or_default();
        words.ends_with(b"worker\0")
            && fs::read_link(of("cwd")).is_ok_and(|cwd| cwd == folder)
            && environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == rank.as_bytes())
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(is_it).expect("the rank has a process")
}

fn assert_undisturbed(fixture: &Fixture) {
    fixture.train("whole", &WHOLE).expect(0);
    assert_eq!(fixture.losses("whole"), fixture.losses("run"));
    assert_eq!(fixture.tensors("whole"), fixture.tensors("run"));
}

/// Class, rank and node of what an attempt failed of.
fn failure(attempt: &Value) -> (&str, Option<u64>, Option<u64>) {
    assert_eq!(attempt["outcome"], "failed", "{attempt}");
    let failure = &attempt["failure"];
    (
        failure["class"].as_str().unwrap(),
        failure["rank"].as_u64(),
        failure["node"].as_u64(),
    )
}

#[test]
fn two_nodes_give_the_bits_of_one_and_name_who_falls() {
    let fixture = Fixture::new();
    let mut both = agents(&fixture, "2", 2, &[]);
    fixture.wait_for_step("run", 30);
    signal(pid(&fixture, 3), Signal::KILL);
    both.remove(1)
        .end()
        .expect(0)
        .says(&["node 1 of 2, by flags", "has joined"]);
    both.remove(0).end().expect(0).says(&[
        "TCP between 2 machines",
        "rank 3",
        "SIGKILL",
        "resumed after step",
    ]);
    let attempts = fixture.attempts("run");
    assert_eq!(failure(&attempts[0]), ("signal 9", Some(3), Some(1)));
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_undisturbed(&fixture);
    let left = fs::read_dir(fixture.path(".")).unwrap();
    let left = left.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(".meeting")
    });
    assert_eq!(left.count(), 0, "the file by which they met is gone");
}

#[test]
fn a_stopped_rank_of_another_node_is_found_by_the_ranks_of_both() {
    let fixture = Fixture::new();
    let mut both = agents(&fixture, "2", 2, &["--set", "launch.step_timeout=2s"]);
    fixture.wait_for_step("run", 25);
    signal(pid(&fixture, 2), Signal::STOP);
    both.remove(0)
        .end()
        .expect(0)
        .says(&["hang: rank 2", "it is stopped"]);
    both.remove(0).end().expect(0);
    assert_eq!(
        failure(&fixture.attempts("run")[0]),
        ("hang", Some(2), Some(1))
    );
    assert_undisturbed(&fixture);
}

#[test]
fn a_node_that_is_lost_and_comes_back_costs_no_bit() {
    let fixture = Fixture::new();
    let mut both = agents(&fixture, "2", 2, &[]);
    fixture.wait_for_step("run", 30);
    let ranks = [2, 3].map(|rank| pid(&fixture, rank));
    both.remove(1).kill();
    let again = Agent::start(&fixture, "2", 1, &[]);
    both.remove(0)
        .end()
        .expect(0)
        .says(&["node 1 (", "with ranks 2 and 3 is lost"]);
    again.end().expect(0);
    for pid in ranks {
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "process {pid} is left"
        );
    }
    assert_eq!(
        failure(&fixture.attempts("run")[0]),
        ("node lost", None, Some(1))
    );
    assert_undisturbed(&fixture);
}

#[test]
fn without_the_first_node_the_others_ask_to_be_started_again() {
    let fixture = Fixture::new();
    let mut both = agents(&fixture, "2", 2, &[]);
    fixture.wait_for_step("run", 30);
    both.remove(0).kill();
    both.remove(0)
        .end()
        .expect(75)
        .says(&["the coordinator is lost", "start the job again"]);
    let mut both = agents(&fixture, "2", 2, &["--resume"]);
    both.remove(0).end().expect(0);
    both.remove(0).end().expect(0);
    assert_eq!(fixture.attempts("run")[0]["outcome"], "lost");
    assert_undisturbed(&fixture);
}

#[test]
fn a_spare_takes_the_place_of_a_node_that_is_lost() {
    let fixture = Fixture::new();
    let mut three = agents(&fixture, "2", 2, &[]);
    // Who comes first is in.
    fixture.wait_for_step("run", 1);
    three.push(Agent::start(&fixture, "2", 2, &[]));
    fixture.wait_for_step("run", 200);
    three.remove(1).kill();
    three.remove(0).end().expect(0);
    three.remove(0).end().expect(0);
    assert_eq!(
        failure(&fixture.attempts("run")[0]),
        ("node lost", None, Some(1))
    );
    let status = fixture.status("run");
    assert_eq!(status["nodes"][2]["state"], "member", "{status}");
    assert_undisturbed(&fixture);
}

/// The validation losses of a run, by step.
fn validations(fixture: &Fixture, run: &str) -> Vec<(u64, f64)> {
    let events = fixture.events(run);
    let of = |event: &Value| Some((event["step"].as_u64()?, event["loss"].as_f64()?));
    let events = events.iter().filter(|event| event["event"] == "evaluation");
    events.filter_map(of).collect()
}

#[test]
fn fewer_nodes_go_on_with_the_same_data() {
    const EVALUATED: [&str; 2] = ["--set", "eval.every=5"];
    let fixture = Fixture::new();
    let mut both = agents(&fixture, "1:2", 2, &EVALUATED);
    fixture.wait_for_step("run", 35);
    both.remove(1).kill();
    both.remove(0)
        .end()
        .expect(0)
        .says(&["2 ranks in place of 4, on 1 of 2 nodes"]);
    let attempts = fixture.attempts("run");
    assert_eq!(failure(&attempts[0]), ("node lost", None, Some(1)));
    fixture
        .train("whole", &[&WHOLE[..], &EVALUATED].concat())
        .expect(0);
    // The step that it went on after: all before was done by both.
    let events = fixture.events("run");
    let resumed = events
        .iter()
        .find(|event| event["event"] == "resumed")
        .unwrap();
    assert_eq!(resumed["ranks"], 2, "{resumed}");
    let from = resumed["step"].as_u64().unwrap() as usize;
    let (whole, run) = (fixture.losses("whole"), fixture.losses("run"));
    assert_eq!(whole[..from], run[..from]);
    // The same samples in the same order: sums are added up in another, and that is all.
    for step in from..from + 25 {
        let error = (whole[step] - run[step]).abs() / whole[step];
        assert!(
            error < 1e-5,
            "step {}: {} and {}",
            step + 1,
            whole[step],
            run[step]
        );
    }
    let (whole, run) = (validations(&fixture, "whole"), validations(&fixture, "run"));
    let within = run.iter().filter(|(step, _)| (*step as usize) <= from + 25);
    let mut compared = 0;
    for (step, loss) in within {
        let (_, expected) = whole.iter().find(|(known, _)| known == step).unwrap();
        assert!(
            (loss - expected).abs() / expected < 1e-5,
            "after step {step}: {loss} and {expected}"
        );
        compared += 1;
    }
    assert!(compared >= 5, "{run:?}");
}

#[test]
fn a_request_to_stop_reaches_all_nodes_by_any() {
    let fixture = Fixture::new();
    let mut both = agents(&fixture, "2", 2, &[]);
    fixture.wait_for_step("run", 30);
    signal(both[1].pid(), Signal::TERM);
    both.remove(0)
        .end()
        .expect(75)
        .says(&["stopped on request"]);
    both.remove(0).end().expect(75);
    let mut both = agents(&fixture, "2", 2, &["--resume"]);
    both.remove(0).end().expect(0);
    both.remove(0).end().expect(0);
    assert_undisturbed(&fixture);
}

#[test]
fn nodes_that_differ_are_told_by_the_key() {
    let fixture = Fixture::new();
    let batch = ["--set", "train.global_batch_size=12"];
    let alike = [0, 1].map(|node| Agent::start(&fixture, "3", node, &batch));
    let more = [&batch[..], &["--set", "optimizer.lr=0.5"]].concat();
    let odd = Agent::start(&fixture, "3", 2, &more);
    let text = ["is not like the others: optimizer.lr is 0.003 on nodes 0, 1, 0.5 on node 2"];
    // None of them says 75, for which schedulers start a job again.
    for agent in alike.into_iter().chain([odd]) {
        agent.end().expect(3).says(&text);
    }
}

/// Somebody types the first node's command once more: it is refused, and the nodes of the run that is under
/// way hear nothing of it.
#[test]
fn a_second_first_node_changes_nothing() {
    let fixture = Fixture::new();
    let mut both = agents(&fixture, "2", 2, &[]);
    fixture.wait_for_step("run", 30);
    for more in [&[][..], &["--resume"]] {
        let refused = Agent::start(&fixture, "2", 0, more).end();
        assert!(matches!(refused.code, Some(1 | 2)), "{}", refused.stderr);
    }
    // Who comes back finds the one that leads.
    both.remove(1).kill();
    both.push(Agent::start(&fixture, "2", 1, &[]));
    both.remove(0).end().expect(0);
    both.remove(0).end().expect(0);
    assert_undisturbed(&fixture);
}

#[test]
fn nodes_that_do_not_come_are_named() {
    let fixture = Fixture::new();
    let short = ["--set", "launch.join_timeout=1s"];
    Agent::start(&fixture, "2", 0, &short)
        .end()
        .expect(96)
        .says(&["too few nodes: 1 of 2", "missing: node 1"]);
    Agent::start(&fixture, "2", 1, &short)
        .end()
        .expect(96)
        .says(&["did not find the coordinator"]);
}

#[test]
fn who_waits_for_others_can_be_stopped() {
    let fixture = Fixture::new();
    for (node, waits, says) in [
        (
            1,
            "looking for the first node",
            "before this node had joined",
        ),
        (0, "waiting for nodes", "stopped on request"),
    ] {
        let mut agent = Agent::start(&fixture, "2", node, &[]);
        let stderr = agent.0.as_mut().unwrap().stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains(waits)));
        signal(agent.pid(), Signal::TERM);
        let rest: Vec<String> = lines.collect();
        agent.end().expect(75);
        assert!(rest.iter().any(|line| line.contains(says)), "{rest:?}");
    }
}

/// Under torchrun, or srun with a task for each rank.
#[test]
fn a_process_for_each_rank_is_a_node_of_one_worker() {
    let fixture = Fixture::new();
    let start = |rank: usize| {
        let arguments = [
            "train",
            "tiny.toml",
            "--run-dir",
            "run",
            "--set",
            "train.steps=600",
        ];
        let child = fixture
            .command(&arguments)
            .envs([
                ("WORLD_SIZE", "4"),
                ("LOCAL_WORLD_SIZE", "4"),
                ("TORCHELASTIC_RUN_ID", "job"),
            ])
            .env("RANK", rank.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Agent(Some(child.unwrap()))
    };
    let ranks: Vec<_> = (0..4).map(start).collect();
    let mut ended = ranks.into_iter().map(Agent::end);
    ended
        .next()
        .unwrap()
        .expect(0)
        .says(&["node 0 of 4, by torchrun", "TCP between 4 machines"]);
    ended.for_each(|rank| drop(rank.expect(0)));
    assert_undisturbed(&fixture);
}

/// What a server answers to a request, body and all.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_first_node_serves_how_all_stand() {
    let fixture = Fixture::new();
    let long = ["--set", "train.steps=20000"];
    let mut first = Agent::start(&fixture, "2", 0, &[&long[..], &["--http"]].concat());
    let second = Agent::start(&fixture, "2", 1, &long);
    let mut lines = BufReader::new(first.0.as_mut().unwrap().stderr.take().unwrap()).lines();
    let served =
        lines.find_map(|line| Some(line.ok()?.split_once("served at http://")?.1.to_owned()));
    let served = served.unwrap();
    // Nobody reads the rest, which must hold nobody up.
    let reader = std::thread::spawn(move || lines.for_each(drop));
    assert!(get(&served, "/healthz").contains("200 OK"));
    // What a node says of its ranks comes once a second.
    let begun = Instant::now();
    let status = loop {
        let answer = get(&served, "/status");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: Value = serde_json::from_str(body).unwrap();
        if status["status"]["ranks"][3]["node"] == 1 {
            break status;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{status}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let nodes = &status["status"]["nodes"];
    assert_eq!(
        (&nodes[0]["state"], &nodes[1]["state"]),
        (&"member".into(), &"member".into()),
        "{status}"
    );
    let metrics = get(&served, "/metrics");
    for name in [
        "cordee_step ",
        "cordee_rank_up{",
        "cordee_nodes{state=\"member\"} 2",
    ] {
        assert!(metrics.contains(name), "{name} is not in:\n{metrics}");
    }
    signal(first.pid(), Signal::TERM);
    first.end().expect(75);
    second.end().expect(75);
    reader.join().unwrap();
}

/// Two network namespaces, joined by a cable; gone with this.
struct Hosts([String; 2]);

impl Hosts {
    /// `None` where the machine does not allow it.
    fn new() -> Option<Self> {
        let hosts = Self([0, 1].map(|host| format!("cordee-test-{}-{host}", std::process::id())));
        let [a, b] = &hosts.0;
        let cable = [
            format!("cd{}a", std::process::id()),
            format!("cd{}b", std::process::id()),
        ];
        let all = [
            vec!["netns", "add", a],
            vec!["netns", "add", b],
            vec![
                "link", "add", &cable[0], "netns", a, "type", "veth", "peer", "name", &cable[1],
                "netns", b,
            ],
            vec!["-n", a, "addr", "add", "10.77.0.1/24", "dev", &cable[0]],
            vec!["-n", b, "addr", "add", "10.77.0.2/24", "dev", &cable[1]],
            vec!["-n", a, "link", "set", &cable[0], "up"],
            vec!["-n", b, "link", "set", &cable[1], "up"],
            vec!["-n", a, "link", "set", "lo", "up"],
            vec!["-n", b, "link", "set", "lo", "up"],
        ];
        all.iter().all(|arguments| ip(arguments)).then_some(hosts)
    }

    /// The same command, on one of the hosts.
    fn on(&self, host: usize, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped
            .args(["netns", "exec", &self.0[host]])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(command.get_current_dir().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        wrapped
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &self.0 {
            ip(&["netns", "del", host]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    let ran = Command::new("ip")
        .args(arguments)
        .stderr(Stdio::null())
        .status();
    ran.is_ok_and(|status| status.success())
}

#[test]
fn two_hosts_with_a_network_between_them_give_the_bits_of_one() {
    let Some(hosts) = Hosts::new() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "network namespaces are needed, by root and `ip` of iproute2"
        );
        println!("skipped: network namespaces need root, and `ip` of iproute2");
        return;
    };
    let fixture = Fixture::new();
    let quickstart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/quickstart.toml");
    let steps = ["--max-steps", "12", "--set", "data.cache_dir=cache"];
    let start = |node: usize| {
        let rank = node.to_string();
        let place = [
            "train",
            quickstart,
            "--run-dir",
            "run",
            "--nnodes",
            "2",
            "--node-rank",
            &rank,
        ];
        let command = fixture.command(&[&place[..], &steps].concat());
        Agent(Some(
            hosts
                .on(node, &command)
                .env("NO_COLOR", "1")
                .spawn()
                .unwrap(),
        ))
    };
    let mut both = vec![start(0), start(1)];
    both.remove(1)
        .end()
        .expect(0)
        .says(&["has joined at 10.77.0.1:"]);
    both.remove(0)
        .end()
        .expect(0)
        .says(&["TCP between 2 machines"]);
    let one = [
        "train",
        quickstart,
        "--run-dir",
        "whole",
        "--set",
        "parallel.workers=4",
    ];
    fixture.run(&[&one[..], &steps].concat()).expect(0);
    assert_eq!(fixture.losses("whole"), fixture.losses("run"));
    assert_eq!(fixture.tensors("whole"), fixture.tensors("run"));
}
