//! Signals, deaths and divergence.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Finished, Fixture};

/// The worker processes of a launcher, by what `/proc` says of their parents.
fn workers(launcher: u32) -> Vec<Pid> {
    let children =
        fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    children
        .split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap())
        .collect()
}

/// Whether it is there and no zombie that its new parent has not reaped yet.
fn is_running(pid: Pid) -> bool {
    let stat =
        fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Waits until none of them is left.
fn assert_gone(workers: &[Pid]) {
    let started = Instant::now();
    while workers.iter().any(|&pid| is_running(pid)) {
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "workers are left: {workers:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// Long enough to be interrupted, and ended by its first failure.
const LONG: [&str; 6] = [
    "--set",
    "train.steps=100000",
    "--set",
    "checkpoint.every=0",
    "--set",
    "launch.max_restarts=0",
];

#[test]
fn a_request_to_stop_ends_at_a_step_with_a_checkpoint() {
    for signal in [Signal::TERM, Signal::INT, Signal::USR1] {
        let fixture = Fixture::new();
        let child = fixture.start("run", &LONG);
        fixture.wait_for_step("run", 5);
        kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
        Finished::from(child.wait_with_output().unwrap())
            .expect(75)
            .says(&["--resume"]);
        let steps = fixture.steps("run").len() as u64;
        assert!(
            fixture
                .path(&format!("run/checkpoints/step-{steps:09}/MANIFEST.json"))
                .exists()
        );
        let more = format!("{}", steps + 3);
        let arguments = [&LONG[..], &["--resume", "--max-steps", &more]].concat();
        fixture
            .train("run", &arguments)
            .expect(0)
            .says(&[&format!("resumed after step {steps}")]);
    }
}

#[test]
fn a_second_request_stops_at_once() {
    let fixture = Fixture::new();
    let mut child = fixture.start("run", &LONG);
    fixture.wait_for_step("run", 5);
    let ranks = workers(child.id());
    let launcher = Pid::from_raw(child.id().cast_signed()).unwrap();
    // A stopped worker reaches no step boundary, so only the second request can end this.
    kill_process(ranks[1], Signal::STOP).unwrap();
    kill_process(launcher, Signal::INT).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(
        child.try_wait().unwrap().is_none(),
        "it waits for the step boundary"
    );
    kill_process(launcher, Signal::INT).unwrap();
    let started = Instant::now();
    let status = child.wait().unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(status.code(), Some(130), "{status:?}");
    assert_gone(&ranks);
}

#[test]
fn no_worker_survives_its_launcher() {
    let fixture = Fixture::new();
    let mut child = fixture.start("run", &LONG);
    fixture.wait_for_step("run", 5);
    let ranks = workers(child.id());
    assert_eq!(ranks.len(), 2);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_gone(&ranks);
}

#[test]
fn the_rank_that_dies_is_named() {
    let fixture = Fixture::new();
    let child = fixture.start("run", &LONG);
    fixture.wait_for_step("run", 5);
    let ranks = workers(child.id());
    let started = Instant::now();
    kill_process(ranks[1], Signal::KILL).unwrap();
    let finished = Finished::from(child.wait_with_output().unwrap()).expect(1);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    finished.says(&["rank 1", "SIGKILL", "rank-001.log"]);
    assert_gone(&ranks);
}

#[test]
fn divergence_is_named() {
    let fixture = Fixture::new();
    let diverged = fixture.train(
        "run",
        &[
            "--set",
            "optimizer.lr=1e38",
            "--set",
            "schedule.warmup_steps=0",
        ],
    );
    diverged.expect(4).says(&[
        "diverged at step",
        "the first gradient that is not finite is that of",
        "optimizer.lr",
    ]);
    let last = fixture.events("run").pop().unwrap();
    assert_eq!(last["event"], "failed", "{last}");
}

#[test]
fn weights_that_are_no_numbers_are_never_saved() {
    let fixture = Fixture::new();
    let last = [
        "--max-steps",
        "1",
        "--set",
        "optimizer.lr=1e38",
        "--set",
        "schedule.warmup_steps=0",
    ];
    fixture
        .train("run", &last)
        .expect(4)
        .says(&["diverged at step 1", "are not finite"]);
    assert!(!fixture.path("run/checkpoints/step-000000001").exists());
}

#[test]
fn a_rank_that_hangs_is_named() {
    let fixture = Fixture::new();
    let more = [&LONG[..], &["--set", "parallel.timeout=\"1s\""]].concat();
    let child = fixture.start("run", &more);
    fixture.wait_for_step("run", 5);
    let ranks = workers(child.id());
    kill_process(ranks[1], Signal::STOP).unwrap();
    let finished = Finished::from(child.wait_with_output().unwrap()).expect(95);
    finished.says(&["rank 0 waited", "for rank 1", "find out who stopped rank 1"]);
    assert_gone(&ranks);
}

#[test]
fn a_job_that_is_suspended_as_a_whole_goes_on() {
    let fixture = Fixture::new();
    let more = [
        "--set",
        "parallel.timeout=\"4s\"",
        "--set",
        "train.steps=4000",
        "--set",
        "checkpoint.every=0",
    ];
    let child = fixture.start("run", &more);
    fixture.wait_for_step("run", 5);
    let ranks = workers(child.id());
    for &rank in &ranks {
        kill_process(rank, Signal::STOP).unwrap();
    }
    thread::sleep(Duration::from_secs(6));
    for &rank in &ranks {
        kill_process(rank, Signal::CONT).unwrap();
    }
    Finished::from(child.wait_with_output().unwrap()).expect(0);
}
