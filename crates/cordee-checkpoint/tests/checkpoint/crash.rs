//! Writers that are killed: in the middle of a file, and at any moment of many saves.
//!
//! The test binary starts itself again as the process that is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::fixture::{BLOCK, Tensors, spec};
use cordee_checkpoint::{Dtype, Plan, TensorSource, begin, newest_valid, write_shard};

const DIRECTORY: &str = "CORDEE_TEST_CRASH_DIRECTORY";

/// Starts the ignored test `name` of this binary in a process of its own.
fn start(name: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn large(seed: u64) -> Tensors {
    Tensors::new(vec![spec("weight", Dtype::F32, &[1024, 3072])], seed)
}

/// Says so when it is asked for bytes far into the tensor, and then never answers.
struct Stalling(Tensors);

impl TensorSource for Stalling {
    fn copy_bytes(&self, tensor: &str, offset: u64, out: &mut [u8]) -> Result<(), String> {
        if offset > 8 << 20 {
            println!("\nstalled");
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        }
        let bytes = &self.0.bytes[tensor][offset as usize..];
        out.copy_from_slice(&bytes[..out.len()]);
        Ok(())
    }
}

#[test]
#[ignore = "a process that another test starts and kills"]
fn child_that_stalls_in_the_middle_of_a_file() {
    // Somebody may run all ignored tests.
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let tensors = large(2);
    let plan = Plan::new(&tensors.specs, 1).unwrap();
    let attempt = begin(Path::new(&directory), 20).unwrap();
    write_shard(&attempt, 0, &plan, &Stalling(tensors), None, BLOCK).unwrap();
    unreachable!("the source never answers");
}

#[test]
fn a_writer_killed_in_the_middle_of_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let earlier = large(1);
    earlier.save(directory.path(), 10, 1).unwrap();

    let mut child = start(
        "crash::child_that_stalls_in_the_middle_of_a_file",
        directory.path(),
    );
    let said = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(
        said.into_iter().any(|line| line == "stalled"),
        "the child ended early"
    );
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    let shard = directory
        .path()
        .join(".tmp-step-000000020/rank-00000.safetensors");
    assert!(
        shard.metadata().unwrap().len() > 0,
        "it was killed after its first bytes"
    );

    let found = newest_valid(directory.path()).unwrap();
    let checkpoint = found.checkpoint.unwrap();
    assert_eq!(checkpoint.step(), 10);
    assert_eq!(checkpoint.tensor_hash("weight").unwrap(), earlier.hash());
    let [rejected] = found.rejected.as_slice() else {
        panic!("{:?}", found.rejected);
    };
    assert!(rejected.path.ends_with(".tmp-step-000000020"));
    assert_eq!(rejected.reason, "half-written: never committed");

    // The next attempt at the step begins afresh.
    large(3).save(directory.path(), 20, 2).unwrap();
    let found = newest_valid(directory.path()).unwrap();
    assert_eq!(
        (found.checkpoint.unwrap().step(), found.rejected.len()),
        (20, 0)
    );
}

#[test]
#[ignore = "a process that another test starts and kills"]
fn child_that_saves_without_end() {
    // Somebody may run all ignored tests.
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let directory = Path::new(&directory);
    let first = newest_valid(directory)
        .unwrap()
        .checkpoint
        .map_or(0, |last| last.step());
    println!();
    for step in first + 1.. {
        // Every step twice, so that the replacement of a checkpoint is cut short too.
        for _ in 0..2 {
            Tensors::small(step).save(directory, step, 2).unwrap();
            println!("saved {step}");
        }
        cordee_checkpoint::retain(directory, 2).unwrap();
    }
}

#[test]
fn whatever_is_said_to_be_saved_survives_a_kill_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let mut saved = 0;
    for round in 0..25 {
        let mut child = start("crash::child_that_saves_without_end", directory.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut count = 0;
        // A few saves, then a moment that differs by parts of a millisecond from round to round.
        for line in lines.by_ref() {
            if let Some(step) = line.strip_prefix("saved ") {
                saved = step.parse().unwrap();
                count += 1;
            }
            if count == 1 + round % 4 {
                break;
            }
        }
        thread::sleep(Duration::from_micros(round * 337));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said between the last line read and the kill.
        saved = lines
            .filter_map(|line| line.strip_prefix("saved ")?.parse().ok())
            .last()
            .unwrap_or(saved);

        let found = newest_valid(directory.path()).unwrap();
        let checkpoint = found.checkpoint.expect("a checkpoint was said to be saved");
        let step = checkpoint.step();
        assert!(
            step == saved || step == saved + 1,
            "{saved} was said, {step} was found"
        );
        for (name, bytes) in &Tensors::small(step).bytes {
            let mut read = vec![0; bytes.len()];
            checkpoint.read(name, &mut read).unwrap();
            assert!(read == *bytes, "tensor {name} of step {step}");
        }
        for rejected in &found.rejected {
            assert_eq!(
                rejected.reason,
                "half-written: never committed",
                "{}",
                rejected.path.display()
            );
        }
    }
    assert!(saved > 25);
}
