//! Ranks as processes: this test binary runs itself again, with the shared memory as its input. For ranks
//! that are killed, and for NCCLs that are told to go wrong (by the stand-in's own variables).

use std::{
    env,
    io::{BufRead, BufReader, Lines, Write},
    os::fd::OwnedFd,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use cordee_comm::ProcessGroup;
use cordee_memory::{DType, SharedMemory};

use crate::{AT_ONCE, equipment, threads::join};

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
        ordinal: usize,
        timeout: Duration,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "processes::rank_of_its_own",
                "--ignored",
                "--nocapture",
            ])
            .env(WHO, format!("{rank} {ordinal} {}", timeout.as_millis()))
            .envs(variables.iter().copied())
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

/// What a started process runs: sums again and again, and tells when it has begun and how it ended.
#[test]
#[ignore = "run by the tests of this module, in processes of their own"]
fn rank_of_its_own() {
    let who = env::var(WHO).expect("started by a test of this module");
    let [rank, ordinal, timeout] = who.split(' ').collect::<Vec<_>>()[..] else {
        panic!("three words")
    };
    let (library, _) = equipment().unwrap();
    let tell = |text: String| {
        let mut out = std::io::stdout();
        writeln!(out, "\n{text}").unwrap();
        out.flush().unwrap();
    };
    let started = Instant::now();
    let joined = join(
        library,
        SharedMemory::inherited(0).unwrap(),
        (rank.parse().unwrap(), 2),
        ordinal.parse().unwrap(),
        Duration::from_millis(timeout.parse().unwrap()),
    );
    let (mut group, gpu) = match joined {
        Ok(joined) => joined,
        Err(error) => {
            tell(format!("seconds={}", started.elapsed().as_secs_f64()));
            return tell(format!("error={error}"));
        }
    };
    let mut buffer = gpu.zeroed(DType::F32, 300_000).unwrap();
    for round in 0.. {
        let started = Instant::now();
        let begun = group.all_reduce(&mut buffer, 0..300_000);
        if let Err(error) = begun.and_then(|()| group.wait()) {
            tell(format!("seconds={}", started.elapsed().as_secs_f64()));
            return tell(format!("error={error}"));
        }
        if round == 3 {
            tell("begun=".to_owned());
        }
    }
}

/// Starts both ranks and returns what they end with.
fn errors(timeout: Duration, ordinals: [usize; 2], variables: [&[(&str, &str)]; 2]) -> [String; 2] {
    let memory = SharedMemory::create("nccl-test").unwrap();
    let start = |rank: usize| Rank::start(&memory, rank, ordinals[rank], timeout, variables[rank]);
    let mut ranks = [start(0), start(1)];
    ranks.each_mut().map(|rank| rank.told("error="))
}

#[test]
fn a_killed_rank_is_named_within_the_deadline() {
    if equipment().is_none() {
        return;
    }
    let memory = SharedMemory::create("nccl-test").unwrap();
    let timeout = Duration::from_millis(1500);
    let mut ranks = [0, 1].map(|rank| Rank::start(&memory, rank, rank, timeout, &[]));
    for rank in &mut ranks {
        rank.told("begun=");
    }
    ranks[1].process.kill().unwrap();
    let seconds: f64 = ranks[0].told("seconds=").parse().unwrap();
    assert!(seconds < AT_ONCE.as_secs_f64(), "{seconds} s");
    let error = ranks[0].told("error=");
    assert!(
        error.contains("all_reduce #") && error.contains("1200000 bytes"),
        "{error}"
    );
    // Where each stood.
    assert!(
        error.contains("rank 0: all_reduce #") || error.contains("ranks 0, 1: all_reduce #"),
        "{error}"
    );
    assert!(ranks[0].process.wait().unwrap().success());
}

#[test]
fn an_error_of_nccl_is_told_with_all_that_is_known() {
    if equipment().is_none() {
        return;
    }
    let fail: &[_] = &[("STAND_IN_NCCL_FAIL", "1:3")];
    let errors = errors(AT_ONCE, [0, 1], [&[], fail]);
    assert!(
        errors[1].starts_with(
            "rank 1 of the 2 of group `test`: all_reduce #6 of 1200000 bytes (f32 0..300000 of a device's buffer): \
             work that was begun of NCCL "
        ),
        "{errors:?}"
    );
    assert!(
        errors[1].contains("unhandled system error") && errors[1].contains("(result 2)"),
        "{errors:?}"
    );
    assert!(errors[1].contains("collective 3 was to fail"), "{errors:?}");
    assert!(
        errors[1].contains("all_reduce #6 of 1200000 bytes begun, #5 completed"),
        "{errors:?}"
    );
    assert!(
        errors[0].contains("rank 1 failed: rank 1 of the 2"),
        "{errors:?}"
    );
}

#[test]
fn an_abort_that_hangs_is_given_up() {
    if equipment().is_none() {
        return;
    }
    let memory = SharedMemory::create("nccl-test").unwrap();
    let timeout = Duration::from_millis(1500);
    let hang = [("STAND_IN_NCCL_ABORT", "hang")];
    let mut ranks = [0, 1].map(|rank| Rank::start(&memory, rank, rank, timeout, &hang));
    for rank in &mut ranks {
        rank.told("begun=");
    }
    ranks[1].process.kill().unwrap();
    let error = ranks[0].told("error=");
    assert!(
        error.contains("has not done so for 10 s: end this process")
            && error.contains("all_reduce #"),
        "{error}"
    );
    assert!(ranks[0].process.wait().unwrap().success());
}

#[test]
fn different_versions_are_refused() {
    if equipment().is_none() {
        return;
    }
    let older: &[_] = &[("STAND_IN_NCCL_VERSION", "22807")];
    for error in errors(AT_ONCE, [0, 1], [&[], older]) {
        assert!(
            error.contains("rank 1 2.28.7: give all ranks the same library"),
            "{error}"
        );
    }
}

#[test]
fn two_ranks_on_one_gpu_are_refused_with_nccls_words_or_allowed() {
    if equipment().is_none() {
        return;
    }
    let errors = errors(AT_ONCE, [0, 0], [&[], &[]]);
    for (rank, error) in errors.iter().enumerate() {
        assert!(error.contains("Duplicate GPU detected"), "{error}");
        assert!(
            error.contains("join #1") || error.contains(&format!("rank {} failed", 1 - rank)),
            "{error}"
        );
    }
    let memory = SharedMemory::create("nccl-test").unwrap();
    let allow = [("NCCL_MULTI_RANK_GPU_ENABLE", "1")];
    let mut ranks = [0, 1].map(|rank| Rank::start(&memory, rank, 0, AT_ONCE, &allow));
    for rank in &mut ranks {
        rank.told("begun=");
    }
}
