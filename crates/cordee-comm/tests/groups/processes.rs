//! Ranks as processes: this test binary runs itself again, with the shared memory as its input.

use std::{
    env,
    io::{BufRead, BufReader, Lines, Write},
    os::fd::OwnedFd,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use cordee_comm::{
    CommError, ProcessGroup, SharedMemoryGroup,
    conformance::{Setting, cases},
};
use cordee_memory::{DType, SharedMemory};

use crate::threads::PATIENCE;

const WHO: &str = "CORDEE_COMM_TEST_RANK";

/// A rank in a process of its own, and what it prints.
struct Rank {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Rank {
    fn start(
        memory: &SharedMemory,
        rank: usize,
        world_size: usize,
        body: &str,
        timeout: Duration,
    ) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "processes::rank_of_its_own",
                "--ignored",
                "--nocapture",
            ])
            .env(
                WHO,
                format!("{rank} {world_size} {} {body}", timeout.as_millis()),
            )
            .stdin(Stdio::from(OwnedFd::from(memory.try_clone().unwrap())))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// What follows `prefix` in the next line that has it.
    fn told(&mut self, prefix: &str) -> String {
        for line in &mut self.lines {
            if let Some((_, rest)) = line.unwrap().split_once(prefix) {
                return rest.to_owned();
            }
        }
        panic!("the rank ended without `{prefix}`");
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a started process runs.
#[test]
#[ignore = "run by the tests of this module, in processes of their own"]
fn rank_of_its_own() {
    let who = env::var(WHO).expect("started by a test of this module");
    let [rank, world_size, timeout, body] = who.split(' ').collect::<Vec<_>>()[..] else {
        panic!("four words")
    };
    let timeout = Duration::from_millis(timeout.parse().unwrap());
    let memory = SharedMemory::inherited(0).unwrap();
    let mut group = SharedMemoryGroup::join(
        memory,
        rank.parse().unwrap(),
        world_size.parse().unwrap(),
        timeout,
    )
    .unwrap();
    if body == "until_it_fails" {
        until_it_fails(&mut group);
    } else {
        let case = cases()[body.parse::<usize>().unwrap()];
        let wrong = case.run(&mut group, &Setting::HOST).unwrap();
        assert_eq!(wrong, None, "{case:?}");
    }
}

/// Reduces again and again, and tells when it has begun and how it ended.
fn until_it_fails(group: &mut dyn ProcessGroup) {
    let mut buffer = group.allocate(DType::F32, 1_000_000).unwrap();
    let tell = |text: String| {
        let mut out = std::io::stdout();
        writeln!(out, "\n{text}").unwrap();
        out.flush().unwrap();
    };
    for round in 0.. {
        let started = Instant::now();
        if let Err(error) = group.all_reduce(&mut buffer, 0..1_000_000) {
            assert!(
                matches!(
                    error,
                    CommError::Timeout { .. } | CommError::PeerFailed { .. }
                ),
                "{error:?}"
            );
            tell(format!("seconds={}", started.elapsed().as_secs_f64()));
            return tell(format!("error={error}"));
        }
        if round == 3 {
            tell("begun=".to_owned());
        }
    }
}

#[test]
fn every_case_on_four_processes() {
    for (number, case) in cases().iter().enumerate() {
        let name = format!("{case:?}");
        let memory = SharedMemory::create("comm-test").unwrap();
        let mut ranks: Vec<_> = (0..4)
            .map(|rank| Rank::start(&memory, rank, 4, &number.to_string(), PATIENCE))
            .collect();
        for (rank, started) in ranks.iter_mut().enumerate() {
            let lines: Vec<_> = started.lines.by_ref().map(Result::unwrap).collect();
            assert!(
                started.process.wait().unwrap().success(),
                "{name}, rank {rank}: {}",
                lines.join("\n")
            );
        }
    }
}

#[test]
fn a_killed_rank_is_named_within_the_deadline() {
    let memory = SharedMemory::create("comm-test").unwrap();
    let timeout = Duration::from_millis(1500);
    let mut ranks: Vec<_> = (0..3)
        .map(|rank| Rank::start(&memory, rank, 3, "until_it_fails", timeout))
        .collect();
    for rank in &mut ranks {
        rank.told("begun=");
    }
    ranks[1].process.kill().unwrap();
    let mut timeouts = 0;
    for rank in [0, 2] {
        let seconds: f64 = ranks[rank].told("seconds=").parse().unwrap();
        assert!(
            (1.0..10.0).contains(&seconds),
            "rank {rank} waited {seconds} s"
        );
        let error = ranks[rank].told("error=");
        // The first to lose patience says so, which may be all that the other gets to know.
        assert!(error.contains("for rank 1: look"), "rank {rank}: {error}");
        assert!(
            error.contains("all_reduce #") && error.contains("4000000 bytes"),
            "rank {rank}: {error}"
        );
        timeouts += usize::from(error.starts_with(&format!("rank {rank} waited")));
        assert!(ranks[rank].process.wait().unwrap().success(), "rank {rank}");
    }
    assert!(timeouts >= 1, "somebody waited for the whole time");
}
