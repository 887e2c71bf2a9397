//! What `cordee smoke` finds: a machine that is fit, one that is not, one that does not answer.

use std::{
    fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    bad_input::small_disk,
    fixture::{Finished, Fixture},
};

/// What holds on every machine, however loaded.
const RIGHT: &str = r"
[any]
products = { at_most = 0 }
host_sums = { at_most = 0 }
storage_bytes = { at_most = 0 }
training = { at_most = 1e-3 }
";

/// On the CPU, with thresholds of the test's own.
const QUICK: [&str; 9] = [
    "smoke",
    "--device=cpu",
    "--workers=2",
    "--storage=1MiB",
    "--dir",
    "runs",
    "--thresholds",
    "right.toml",
    "--json",
];

fn smoke(fixture: &Fixture, more: &[&str]) -> Finished {
    fixture.write("right.toml", RIGHT);
    fixture.run(&[&QUICK, more].concat())
}

fn report(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap()
}

/// The checks of a report with this verdict, each with why.
fn those(report: &Value, verdict: &str) -> Vec<(String, String)> {
    let checks = report["checks"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    checks
        .filter(|it| it["verdict"] == verdict)
        .map(|it| (text(&it["check"]), text(&it["why"])))
        .collect()
}

#[test]
fn a_machine_that_is_right_is_fit() {
    let fixture = Fixture::new();
    let finished = smoke(&fixture, &["--junit", "report.xml"]).expect(0);
    let report = report(&finished);
    assert_eq!(report["passed"], true);
    assert!(report["ok"].as_u64().unwrap() >= 21, "{report}");
    assert_eq!(report["bad"], 0);
    // Of GPUs not everything is told everywhere.
    let unknown = those(&report, "unknown");
    assert!(
        unknown.iter().all(|(name, _)| name.starts_with("gpu_")),
        "{unknown:?}"
    );
    let stages: Vec<_> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["stage"].as_str().unwrap())
        .collect();
    let mut order = stages.clone();
    order.dedup();
    assert_eq!(order, ["sanity", "validation", "performance", "training"]);
    let junit = fs::read_to_string(fixture.path("report.xml")).unwrap();
    assert_eq!(junit.matches("<testcase ").count(), stages.len());
    assert!(junit.contains("failures=\"0\" errors=\"0\""), "{junit}");
    // Nothing is left of it.
    assert!(
        !fixture.path("runs").exists() || fs::read_dir(fixture.path("runs")).unwrap().count() == 0
    );
}

#[test]
fn any_number_of_ranks_trains_to_the_losses_on_record() {
    let fixture = Fixture::new();
    // Three cannot share a batch of sixteen, so two train.
    for workers in ["--workers=1", "--workers=3", "--workers=4"] {
        fixture.write("right.toml", RIGHT);
        let quick = QUICK.map(|it| if it == "--workers=2" { workers } else { it });
        fixture.run(&quick).expect(0);
    }
}

#[test]
fn what_nobody_reaches_is_bad() {
    let fixture = Fixture::new();
    fixture.write(
        "right.toml",
        "[any]\nopen_files = { at_least = 1e12 }\nmatmul_f32 = { at_least = 1e6 }\n",
    );
    let finished = fixture.run(&QUICK).expect(3);
    let bad = those(&report(&finished), "bad");
    let names: Vec<_> = bad.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["open_files", "matmul_f32", "matmul_f32"]);
    assert!(bad[1].1.ends_with(" < 1000000 TFLOP/s"), "{bad:?}");
    let text = fixture.run(&QUICK[..8]).expect(3).stdout;
    let last = text.lines().last().unwrap();
    assert!(
        last.contains(" ok, 0 unknown, 3 BAD: open_files: "),
        "{last}"
    );
    assert!(text.contains("\n      fix: ulimit -n 65536"), "{text}");
}

#[test]
fn thresholds_with_a_key_that_is_not_known_are_refused() {
    let fixture = Fixture::new();
    fixture.write("right.toml", "[any]\nopen_file = { at_least = 1 }\n");
    fixture.run(&QUICK).expect(2).says(&[
        "right.toml",
        "line 2",
        "unknown variant `open_file`",
        "`open_files`",
    ]);
}

#[test]
fn storage_that_cannot_be_written_is_bad_and_nothing_is_trained_on_it() {
    let fixture = Fixture::new();
    fixture.write("right.toml", RIGHT);
    let elsewhere = QUICK.map(|it| if it == "runs" { "/proc/nowhere" } else { it });
    let report = report(&fixture.run(&elsewhere).expect(3));
    let bad = those(&report, "bad");
    let storage = bad
        .iter()
        .find(|(name, _)| name == "storage_bytes")
        .unwrap();
    assert!(storage.1.starts_with("making the directory: "), "{bad:?}");
    let unknown = those(&report, "unknown");
    let names: Vec<_> = unknown.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["storage_write", "storage_read", "training"]);
}

#[test]
fn a_disk_that_is_full_is_bad() {
    let fixture = Fixture::new();
    let Some(_mounted) = small_disk(&fixture.path("runs"), 512) else {
        return;
    };
    let report = report(&smoke(&fixture, &[]).expect(3));
    let bad = those(&report, "bad");
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!(bad[0].0, "storage_bytes");
    assert!(bad[0].1.contains("No space left on device"), "{bad:?}");
}

#[test]
fn ranks_that_do_not_answer_are_unknown_by_their_deadline() {
    let fixture = Fixture::new();
    fixture.write("right.toml", RIGHT);
    let started = Instant::now();
    let command = [&QUICK[..], &["--deadline", "2"]].concat();
    let launcher = fixture
        .command(&command)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first rank, as soon as it is there: a stopped process answers as much as one that hangs.
    let children = format!("/proc/{0}/task/{0}/children", launcher.id());
    let rank = loop {
        let listed = fs::read_to_string(&children).unwrap();
        if let Some(first) = listed.split_whitespace().next() {
            // Not before it is a program of its own, for which the launcher waits.
            let line = fs::read_to_string(format!("/proc/{first}/cmdline"));
            if line.is_ok_and(|line| line.contains("\0worker\0")) {
                break Pid::from_raw(first.parse().unwrap()).unwrap();
            }
        }
        thread::sleep(Duration::from_millis(1));
        assert!(started.elapsed() < Duration::from_secs(20), "no rank came");
    };
    kill_process(rank, Signal::STOP).unwrap();
    let finished = Finished::from(launcher.wait_with_output().unwrap()).expect(0);
    assert!(started.elapsed() < Duration::from_mins(1));
    let report = report(&finished);
    let unknown = those(&report, "unknown");
    assert!(
        unknown.iter().any(|(_, why)| why == "no answer within 2 s"),
        "{unknown:?}"
    );
    assert!(unknown.contains(&(
        "training".to_owned(),
        "not tried: storage does not work".to_owned()
    )));
    // Other ranks looked at the rest.
    let ok = those(&report, "ok");
    assert!(ok.iter().any(|(name, _)| name == "host_sums"), "{ok:?}");
}
