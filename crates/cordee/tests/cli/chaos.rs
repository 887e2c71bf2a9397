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

/// The network namespaces that a process made, as `cordee chaos` names them.
fn namespaces(pid: u32) -> Vec<String> {
    let names = fs::read_dir("/run/netns").into_iter().flatten();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let made = format!("cordee-chaos-{pid}");
    names
        .filter(|name| *name == made || name.starts_with(&format!("{made}-")))
        .collect()
}

/// Whether hosts can be made here; where CI runs they have to be.
fn hosts_can_be_made() -> bool {
    let name = format!("cordee-test-chaos-{}", std::process::id());
    let ip = |what: &str| {
        let output = Command::new("ip").args(["netns", what, &name]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let can = ip("add");
    if can {
        assert!(ip("delete"));
    } else {
        assert!(
            std::env::var_os("CI").is_none(),
            "network namespaces cannot be made where CI runs: iproute2 or the right is missing"
        );
        println!("skipped: network namespaces cannot be made here (they want root and iproute2)");
    }
    can
}

#[test]
fn a_run_on_two_hosts_under_six_faults_ends_as_if_there_had_been_none() {
    if !hosts_can_be_made() {
        return;
    }
    let fixture = Fixture::new();
    let more = ["--hosts", "2", "--workers", "2", "--faults", "6", "--json"];
    let (mut command, temporary) = chaos(&fixture, &more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id();
    let finished = Finished::from(child.wait_with_output().unwrap());
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
    let finished = finished.expect(0);
    assert_eq!(report["passed"], true, "{}", finished.stderr);
    let faults = report["faults"].as_array().unwrap();
    let mut kinds: Vec<_> = faults
        .iter()
        .map(|fault| fault["kind"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    let all = [
        "agent-kill",
        "kill",
        "launcher-kill",
        "link-cut",
        "node-stop",
        "stop",
    ];
    assert_eq!(kinds, all);
    assert_eq!(report["steps"]["count"], 960);
    assert_eq!(namespaces(pid), [""; 0]);
    assert_nothing_is_left(&temporary);
}

#[test]
fn an_interrupt_takes_the_hosts_down() {
    if !hosts_can_be_made() {
        return;
    }
    let fixture = Fixture::new();
    let (mut command, temporary) = chaos(&fixture, &["--hosts", "2", "--only", "node-stop"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for_disturbed(|| {
        let made = fs::read_dir(&temporary).unwrap().next();
        made.map_or_else(PathBuf::new, |made| made.unwrap().path())
    });
    let pid = child.id();
    assert_eq!(namespaces(pid).len(), 3);
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::INT).unwrap();
    Finished::from(child.wait_with_output().unwrap()).expect(130);
    assert_eq!(namespaces(pid), [""; 0]);
    assert_nothing_is_left(&temporary);
}

#[test]
fn faults_and_workers_that_do_not_fit_the_hosts_are_refused() {
    if !hosts_can_be_made() {
        return;
    }
    let fixture = Fixture::new();
    let refused = |more: &[&str], words: &[&str]| {
        let (mut command, _) = chaos(&fixture, more);
        Finished::from(command.output().unwrap())
            .expect(2)
            .says(words);
    };
    refused(
        &["--hosts", "3"],
        &["4 workers cannot be dealt out evenly to 3 hosts"],
    );
    refused(
        &["--hosts", "2", "--only", "kill,slow-disk"],
        &["slow disk is no fault of a run on several hosts"],
    );
    refused(
        &["--only", "link-cut"],
        &["link cut is no fault of a run on one machine"],
    );
}

#[test]
fn what_hosts_want_and_is_not_there_is_told() {
    let fixture = Fixture::new();
    let (mut command, _) = chaos(&fixture, &["--hosts", "2"]);
    command.env("PATH", fixture.path("nothing"));
    Finished::from(command.output().unwrap())
        .expect(3)
        .says(&["hosts cannot be made here: ", "iproute2 and util-linux"]);
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
