//! Bad input: a clear message, the right exit code, and nothing lost.

use std::{io::Write as _, process::Command};

use crate::fixture::{Finished, Fixture};

fn refused(fixture: &Fixture, more: &[&str], code: i32, says: &[&str]) {
    fixture.train("run", more).expect(code).says(says);
    assert!(
        !fixture.path("run").join("metrics.jsonl").exists(),
        "nothing was started"
    );
}

#[test]
fn unknown_key() {
    let fixture = Fixture::new();
    let config = std::fs::read_to_string(fixture.path("tiny.toml")).unwrap();
    fixture.write(
        "tiny.toml",
        config.replace("lr = 3e-3", "lr = 3e-3\nwieght_decay = 0.2"),
    );
    refused(
        &fixture,
        &[],
        2,
        &["wieght_decay", "tiny.toml:", "did you mean `weight_decay`?"],
    );
}

#[test]
fn wrong_type() {
    let fixture = Fixture::new();
    refused(
        &fixture,
        &["--set", "model.dim=\"wide\""],
        2,
        &["model.dim", "wide"],
    );
}

#[test]
fn missing_config() {
    let fixture = Fixture::new();
    fixture
        .run(&["train", "absent.toml"])
        .expect(2)
        .says(&["absent.toml"]);
}

#[test]
fn missing_text() {
    let fixture = Fixture::new();
    std::fs::remove_file(fixture.path("two.txt")).unwrap();
    refused(&fixture, &[], 2, &["two.txt"]);
}

#[test]
fn empty_text() {
    let fixture = Fixture::new();
    fixture.write("two.txt", "");
    refused(&fixture, &[], 2, &["two.txt", "empty"]);
}

#[test]
fn text_that_is_not_utf_8() {
    let fixture = Fixture::new();
    fixture.write("two.txt", b"caf\xe9 au lait\n".repeat(500));
    refused(&fixture, &[], 2, &["two.txt", "UTF-8", "line 1"]);
}

#[test]
fn heads_that_do_not_divide() {
    let fixture = Fixture::new();
    refused(
        &fixture,
        &["--set", "model.heads=5"],
        2,
        &["model.heads", "32"],
    );
    refused(
        &fixture,
        &["--set", "model.kv_heads=3"],
        2,
        &["kv_heads", "4"],
    );
}

#[test]
fn global_batch_that_does_not_divide() {
    let fixture = Fixture::new();
    refused(
        &fixture,
        &["--set", "train.global_batch_size=10"],
        2,
        &["global_batch_size", "8", "12"],
    );
}

#[test]
fn run_directory_that_exists() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "3"]).expect(0);
    let before = std::fs::read(fixture.path("run/metrics.jsonl")).unwrap();
    fixture
        .train("run", &[])
        .expect(2)
        .says(&["already exists", "--resume"]);
    assert_eq!(
        std::fs::read(fixture.path("run/metrics.jsonl")).unwrap(),
        before
    );
}

#[test]
fn resume_of_something_else() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("other")).unwrap();
    fixture
        .run(&["train", "tiny.toml", "--resume=other"])
        .expect(2)
        .says(&["neither a run directory nor a checkpoint"]);
}

/// A tmpfs of so many KiB, or a word why there is none.
pub(crate) fn small_disk(path: &std::path::Path, kib: u32) -> Option<Mounted> {
    std::fs::create_dir_all(path).unwrap();
    let options = format!("size={kib}k");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
        .arg(path)
        .status();
    if mounted.is_ok_and(|status| status.success()) {
        return Some(Mounted(path.to_owned()));
    }
    // Where CI runs it can mount, and there a fault test that does not run is a failure.
    assert!(
        std::env::var_os("CI").is_none(),
        "a small tmpfs could not be mounted in CI"
    );
    println!("skipped: mounting a small tmpfs needs root");
    None
}

pub(crate) struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_without_room_for_checkpoints() {
    let fixture = Fixture::new();
    let Some(_disk) = small_disk(&fixture.path("disk"), 300) else {
        return;
    };
    fixture
        .train("disk/run", &[])
        .expect(3)
        .says(&["checkpoint", "free", "disk/run"]);
}

#[test]
fn a_disk_that_fills_up_while_training() {
    let fixture = Fixture::new();
    let Some(_disk) = small_disk(&fixture.path("disk"), 4096) else {
        return;
    };
    let more = [
        "--set",
        "train.steps=600",
        "--set",
        "checkpoint.every=20",
        "--set",
        "checkpoint.keep=2",
    ];
    let child = fixture.start("disk/run", &more);
    fixture.wait_for_step("disk/run", 45);
    let mut ballast = std::fs::File::create(fixture.path("disk/ballast")).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
    drop(ballast);
    // Started again, the run finds no room for what it has yet to save, and says so.
    let finished = Finished::from(child.wait_with_output().unwrap()).expect(3);
    finished.says(&[
        "given up, training goes on",
        "could not be written",
        "no room for",
        "free some space",
    ]);

    // What was saved before is whole, and with room again the run ends as if nothing had happened.
    assert!(!fixture.tensors("disk/run").is_empty());
    std::fs::remove_file(fixture.path("disk/ballast")).unwrap();
    fixture
        .train("disk/run", &[&more[..], &["--resume"]].concat())
        .expect(0)
        .says(&["resumed after step"]);
    fixture.train("whole", &more).expect(0);
    assert_eq!(fixture.losses("disk/run"), fixture.losses("whole"));
    assert_eq!(fixture.tensors("disk/run"), fixture.tensors("whole"));
}

#[test]
fn a_disk_without_room_for_all_that_is_kept() {
    let fixture = Fixture::new();
    let Some(_disk) = small_disk(&fixture.path("disk"), 4096) else {
        return;
    };
    let refused = fixture.train("disk/run", &["--set", "checkpoint.every=2"]);
    refused
        .expect(3)
        .says(&["no room for 31 checkpoints", "disk/run"]);
}
