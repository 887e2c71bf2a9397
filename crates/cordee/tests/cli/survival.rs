//! What a run survives, and that it ends as if nothing had happened.

use std::{
    fs,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fixture::{Finished, Fixture};

/// Long enough that something can happen before the end.
const LONG: [&str; 2] = ["--set", "train.steps=500"];

fn signal(pid: u64, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Asks a launcher to stop.
fn ask(child: &Child, with: Signal) {
    signal(child.id().into(), with);
}

/// The process of a rank, as the status of the run tells it.
fn pid(fixture: &Fixture, rank: usize) -> u64 {
    fixture.status("run")["ranks"][rank]["pid"]
        .as_u64()
        .unwrap()
}

/// The run that `disturbed` is to equal, and the times that every attempt adds up to.
fn assert_undisturbed(fixture: &Fixture) {
    fixture.train("whole", &LONG).expect(0);
    assert_eq!(fixture.losses("whole"), fixture.losses("run"));
    assert_eq!(fixture.tensors("whole"), fixture.tensors("run"));
}

fn failure(attempt: &Value) -> (&str, u64) {
    assert_eq!(attempt["outcome"], "failed", "{attempt}");
    assert_eq!(attempt["decision"], "restart", "{attempt}");
    let failure = &attempt["failure"];
    (
        failure["class"].as_str().unwrap(),
        failure["rank"].as_u64().unwrap(),
    )
}

#[test]
fn a_killed_rank_costs_a_moment_and_no_bit() {
    let fixture = Fixture::new();
    let child = fixture.start("run", &LONG);
    fixture.wait_for_step("run", 25);
    signal(pid(&fixture, 1), Signal::KILL);
    Finished::from(child.wait_with_output().unwrap())
        .expect(0)
        .says(&[
            "rank 1",
            "SIGKILL",
            "restarting from the newest checkpoint (restart 1 of 5",
            "resumed after step",
        ]);
    let attempts = fixture.attempts("run");
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(failure(&attempts[0]), ("signal 9", 1));
    assert_eq!(attempts[1]["outcome"], "done");
    let ledger = &attempts[1]["ledger"];
    assert!(
        ledger["recomputation_s"].as_f64().unwrap() > 0.0,
        "{ledger}"
    );
    assert_undisturbed(&fixture);
}

#[test]
fn a_stopped_rank_is_found_out_and_costs_no_bit() {
    let fixture = Fixture::new();
    let child = fixture.start(
        "run",
        &[&LONG[..], &["--set", "launch.step_timeout=\"1s\""]].concat(),
    );
    fixture.wait_for_step("run", 25);
    signal(pid(&fixture, 0), Signal::STOP);
    Finished::from(child.wait_with_output().unwrap())
        .expect(0)
        .says(&["hang: rank 0", "is to blame: it is stopped"]);
    let attempts = fixture.attempts("run");
    assert_eq!(failure(&attempts[0]), ("hang", 0));
    assert_undisturbed(&fixture);
}

#[test]
fn a_killed_launcher_is_written_down_by_the_next() {
    let fixture = Fixture::new();
    let mut child = fixture.start("run", &LONG);
    fixture.wait_for_step("run", 25);
    child.kill().unwrap();
    child.wait().unwrap();
    fixture
        .train("run", &[&LONG[..], &["--resume"]].concat())
        .expect(0);
    let attempts = fixture.attempts("run");
    let outcomes: Vec<_> = attempts.iter().map(|it| &it["outcome"]).collect();
    assert_eq!(outcomes, ["lost", "done"]);
    assert_undisturbed(&fixture);
}

#[test]
fn what_would_fail_again_is_not_started_for_ever() {
    let fixture = Fixture::new();
    let child = fixture.start("run", &["--set", "train.steps=100000"]);
    fixture.wait_for_step("run", 25);
    // From now on no rank can open the data.
    for entry in fs::read_dir(fixture.path("cache")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::rename(&path, path.with_extension("gone")).unwrap();
        }
    }
    signal(pid(&fixture, 1), Signal::KILL);
    Finished::from(child.wait_with_output().unwrap())
        .expect(93)
        .says(&["not restarted: the same has happened twice"]);
    assert_eq!(fixture.attempts("run").len(), 3);
}

#[test]
fn a_request_in_a_validation_costs_none_of_it() {
    let fixture = Fixture::new();
    // Nearly all of the time goes into validations: one takes many times what a request does.
    for name in ["one.txt", "two.txt"] {
        let text = fs::read_to_string(fixture.path(name)).unwrap();
        fixture.write(name, text.repeat(12));
    }
    let more = [
        "--set",
        "eval.every=1",
        "--set",
        "data.validation_fraction=0.6",
        "--set",
        "train.steps=5",
        "--set",
        "checkpoint.every=0",
    ];
    let whole: Vec<_> = {
        fixture.train("whole", &more).expect(0);
        evaluations(&fixture, "whole")
    };
    let child = fixture.start("run", &more);
    fixture.wait_for_step("run", 1);
    ask(&child, Signal::TERM);
    Finished::from(child.wait_with_output().unwrap()).expect(75);
    // It was broken off: had it been waited for, it would be on record, and another step too.
    assert_eq!(fixture.steps_so_far("run"), 1);
    assert_eq!(evaluations(&fixture, "run"), []);
    let resumed = [&more[..], &["--resume"]].concat();
    fixture.train("run", &resumed).expect(0);
    assert_eq!(evaluations(&fixture, "run"), whole);
    assert_eq!(fixture.losses("whole"), fixture.losses("run"));
}

/// Step and loss of every validation.
fn evaluations(fixture: &Fixture, run: &str) -> Vec<(u64, f64)> {
    let events = fixture.events(run).into_iter();
    events
        .filter(|event| event["event"] == "evaluation")
        .map(|event| {
            (
                event["step"].as_u64().unwrap(),
                event["loss"].as_f64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_request_at_any_moment_of_the_start_is_heard() {
    let fixture = Fixture::new();
    // The data is prepared once, so that what follows is the start of the ranks.
    fixture.train("first", &["--max-steps", "1"]).expect(0);
    for wait in [0, 20, 40, 80, 120, 160] {
        let run = format!("run-{wait}");
        let child = fixture.start(&run, &["--set", "train.steps=100000"]);
        let lock = fixture.path(&run).join(".lock");
        let started = Instant::now();
        while !lock.exists() {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "it never began"
            );
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(wait));
        ask(&child, Signal::TERM);
        Finished::from(child.wait_with_output().unwrap()).expect(75);
        let steps = fixture.steps_so_far(&run);
        if steps > 0 {
            let path = format!("{run}/checkpoints/step-{steps:09}/MANIFEST.json");
            assert!(fixture.path(&path).exists(), "{path}");
        }
    }
}
