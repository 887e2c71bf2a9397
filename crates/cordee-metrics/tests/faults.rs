//! Faults that really happen: a process killed in the middle, a disk that fills up.
//!
//! Each test starts this test binary again as the process that suffers; tests marked `ignore` are
//! what runs there.

#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

mod records;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cordee_metrics::{METRICS_FILE, MetricsError, Recorder, read_steps};
use records::step;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const RUN_DIR: &str = "CORDEE_METRICS_TEST_RUN_DIR";
/// Bytes that fit on the "disk": a few lines and a part of the next.
const ROOM: u64 = 1500;

fn run_dir() -> PathBuf {
    env::var_os(RUN_DIR)
        .expect("started by the other test")
        .into()
}

/// A command that runs one ignored test of this binary. The signal that comes with a file over the
/// limit is ignored, so that the write fails as it does on a full disk.
fn child(test: &str, folder: &std::path::Path) -> Command {
    let mut command = Command::new("sh");
    let binary = env::current_exe().unwrap();
    command
        .args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#])
        .arg(binary);
    command
        .args(["--ignored", "--exact", "--nocapture", test])
        .env(RUN_DIR, folder);
    command
}

#[test]
#[ignore = "runs as a child of the test below"]
fn records_until_it_is_killed() {
    let recorder = Recorder::open(&run_dir(), None, true).unwrap();
    for index in 1.. {
        recorder.step(step(index));
        if index % 10 == 0 {
            recorder.flush().unwrap();
            println!("\nflushed {index}");
        }
    }
}

#[test]
fn a_killed_process_has_lost_nothing_that_it_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = child("records_until_it_is_killed", folder.path());
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut flushed = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(index) = line.unwrap().strip_prefix("flushed ") {
            flushed = index.parse().unwrap();
            if flushed >= 200 {
                break;
            }
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(flushed >= 200);

    // The kill may cut the write of a line that was not flushed: such a line is no record.
    let steps = read_steps(&folder.path().join(METRICS_FILE)).unwrap();
    assert!(steps.len() >= flushed);
    for (index, record) in steps.iter().enumerate() {
        assert_eq!(*record, step(index as u64 + 1));
    }
}

#[test]
#[ignore = "runs as a child of the test below"]
fn records_on_a_disk_that_fills_up() {
    let before = getrlimit(Resource::Fsize);
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: Some(ROOM),
            ..before
        },
    )
    .unwrap();
    let recorder = Recorder::open(&run_dir(), None, true).unwrap();
    for index in 1..=50 {
        recorder.step(step(index));
    }
    match recorder.flush().unwrap_err() {
        MetricsError::Pending { lines, .. } => assert!((40..50).contains(&lines), "{lines}"),
        other => panic!("{other}"),
    }
    // The kernel took a part of a line: the case that is easy to get wrong.
    assert_eq!(
        fs::metadata(run_dir().join(METRICS_FILE)).unwrap().len(),
        ROOM
    );

    // The other sink writes when it gets to it.
    let started = Instant::now();
    while recorder.dropped() == 0 && started.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(1));
    }
    setrlimit(Resource::Fsize, before).unwrap();
    recorder.step(step(51));
    recorder.flush().unwrap();
    let dropped = recorder.finish().unwrap();
    assert!((1..51).contains(&dropped), "{dropped}");
}

#[test]
fn a_disk_that_fills_up_costs_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let output = child("records_on_a_disk_that_fills_up", folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let steps = read_steps(&folder.path().join(METRICS_FILE)).unwrap();
    let expected: Vec<_> = (1..=51).map(step).collect();
    assert_eq!(steps, expected);
}
