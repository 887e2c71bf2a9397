//! A run under every kind of fault, judged by the program itself; and that nothing is left of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fixture::{Finished, Fixture};

/// Long enough for ten faults to fall on different steps.
const STEPS: &str = "train.steps=960";

/// `cordee chaos` in a folder where it makes its own temporary directories.
fn chaos(fixture: &Fixture, more: &[&str]) -> (Command, PathBuf) {
    let temporary = fixture.path("temporary");
    fs::create_dir_all(&temporary).unwrap();
    let arguments = [&["chaos", "tiny.toml", "--set", STEPS], more].concat();
    let mut command = fixture.command(&arguments);
    command.env("TMPDIR", &temporary);
    // Where CI runs everything is allowed, and there a fault that was skipped is a failure.
    if std::env::var_os("CI").is_some() {
        command.arg("--strict");
    }
    (command, temporary)
}

/// Asserts that nothing is left of what went on in a folder: no process or mount, and no temporary file.
fn assert_nothing_is_left(temporary: &Path) {
    let files: Vec<_> = fs::read_dir(temporary).unwrap().collect();
    assert!(files.is_empty(), "{files:?}");
    let folder = temporary.parent().unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
    for entry in fs::read_dir("/proc").unwrap() {
        let process = entry.unwrap().path();
        // Whatever was started there is at work there; it may be gone by the time it is asked.
        let at_work = fs::read_link(process.join("cwd")).unwrap_or_default();
        assert!(
            !at_work.starts_with(folder),
            "{} is left",
            process.display()
        );
    }
}

#[test]
fn a_run_under_ten_faults_ends_as_if_there_had_been_none() {
    let fixture = Fixture::new();
    let (mut command, temporary) = chaos(&fixture, &["--faults", "10", "--seed", "1", "--json"]);
    let finished = Finished::from(command.output().unwrap());
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
    let finished = finished.expect(0);
    assert_eq!(report["passed"], true, "{}", finished.stderr);
    let faults = report["faults"].as_array().unwrap();
    let skipped = report["skipped"].as_array().unwrap();
    assert_eq!(faults.len(), 10);
    let mut kinds: Vec<_> = faults
        .iter()
        .map(|fault| fault["kind"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len() + skipped.len(), 8, "{kinds:?}, {skipped:?}");
    assert_eq!(report["steps"]["count"], 960);
    assert_nothing_is_left(&temporary);
}

/// Waits until the second run, in `dir`, trains.
fn wait_for_disturbed(dir: impl Fn() -> PathBuf) {
    let begun = Instant::now();
    while !dir().join("disturbed/metrics.jsonl").exists() {
        assert!(begun.elapsed() < Duration::from_mins(2), "it never began");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let (mut command, temporary) = chaos(&fixture, &[]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // Where a small disk is mounted and ranks are at work.
    wait_for_disturbed(|| {
        let made = fs::read_dir(&temporary).unwrap().next();
        made.map_or_else(PathBuf::new, |made| made.unwrap().path())
    });
    kill_process(
        Pid::from_raw(child.id().cast_signed()).unwrap(),
        Signal::INT,
    )
    .unwrap();
    Finished::from(child.wait_with_output().unwrap()).expect(130);
    assert_nothing_is_left(&temporary);
}

#[test]
fn a_loss_that_is_another_in_its_last_digit_is_found_out() {
    let fixture = Fixture::new();
    let more = ["--only", "kill", "--faults", "1", "--dir", "both"];
    let (mut command, temporary) = chaos(&fixture, &more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for_disturbed(|| fixture.path("both"));
    // The undisturbed run is over, and nobody but this test writes there.
    let path = fixture.path("both/undisturbed/metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let loss = fixture.losses("both/undisturbed")[499];
    let other = f64::from_bits(loss.to_bits() ^ 1);
    let changed = text.replacen(&format!("{loss:?}"), &format!("{other:?}"), 1);
    assert_ne!(text, changed);
    fs::write(&path, changed).unwrap();
    let finished = Finished::from(child.wait_with_output().unwrap()).expect(1);
    let told = format!("step 500: loss is {loss:?}, undisturbed {other:?}");
    assert!(finished.stdout.contains(&told), "{}", finished.stdout);
    assert!(finished.stdout.contains("FAILED, 1 of 1 faults"));
    // Both runs stay for a look.
    assert!(fixture.path("both/disturbed/checkpoints/LATEST").exists());
    assert_nothing_is_left(&temporary);
}

#[test]
fn a_run_without_room_for_faults_is_refused() {
    let fixture = Fixture::new();
    fixture
        .run(&["chaos", "tiny.toml"])
        .expect(2)
        .says(&["no room for faults", "hint: set train.steps higher"]);
    fixture
        .run(&[
            "chaos",
            "tiny.toml",
            "--set",
            STEPS,
            "--set",
            "checkpoint.every=0",
        ])
        .expect(2);
}
