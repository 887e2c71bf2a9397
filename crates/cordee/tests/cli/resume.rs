//! A run that was cut goes on as if nothing had happened.

use std::{fs, os::unix::process::ExitStatusExt};

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::Fixture;

fn pid(child: &std::process::Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).unwrap()
}

#[test]
fn thirty_steps_a_kill_and_thirty_more_equal_sixty() {
    let fixture = Fixture::new();
    fixture.train("whole", &[]).expect(0);

    // The steps are short: until the kill comes before the last of them.
    loop {
        let mut child = fixture.start("cut", &[]);
        fixture.wait_for_step("cut", 31);
        kill_process(pid(&child), Signal::KILL).unwrap();
        if child.wait().unwrap().signal() == Some(9) && fixture.steps_so_far("cut") < 60 {
            break;
        }
        fs::remove_dir_all(fixture.path("cut")).unwrap();
    }
    fixture
        .train("cut", &["--resume"])
        .expect(0)
        .says(&["resumed after step"]);

    assert_eq!(fixture.losses("whole"), fixture.losses("cut"));
    assert_eq!(fixture.tensors("whole"), fixture.tensors("cut"));
    let steps: Vec<u64> = fixture
        .steps("cut")
        .iter()
        .map(|step| step["step"].as_u64().unwrap())
        .collect();
    assert_eq!(
        steps,
        (1..=60).collect::<Vec<_>>(),
        "each step has one line"
    );
}

#[test]
fn any_world_size_goes_on() {
    let fixture = Fixture::new();
    fixture.train("whole", &[]).expect(0);
    let whole = fixture.losses("whole");
    for (before, after) in [("4", "1"), ("1", "2")] {
        let run = format!("{before}-{after}");
        let workers = |workers| format!("parallel.workers={workers}");
        fixture
            .train(&run, &["--max-steps", "30", "--set", &workers(before)])
            .expect(0);
        fixture
            .train(&run, &["--resume", "--set", &workers(after)])
            .expect(0);
        let changed = fixture.losses(&run);
        assert_eq!(changed.len(), 60);
        // Rounding grows with the steps; another order of data would be off by far more.
        for (step, (a, b)) in whole.iter().zip(changed).enumerate() {
            let tolerance = if step < 35 { 1e-5 } else { 1e-3 };
            assert!(
                (a - b).abs() <= tolerance * a.abs(),
                "step {}: {a} and {b}",
                step + 1
            );
        }
    }
}

#[test]
fn a_bad_checkpoint_is_named_and_the_one_before_it_is_used() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "30"]).expect(0);
    let whole = fixture.losses("run");

    // A flipped bit in the newest, a truncated file in the one before, half a write beside them.
    let checkpoints = fixture.path("run").join("checkpoints");
    let shard = |step: u32, rank: u32| {
        checkpoints.join(format!("step-{step:09}/rank-{rank:05}.safetensors"))
    };
    let mut bytes = fs::read(shard(30, 1)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(shard(30, 1), &bytes).unwrap();
    let truncated = fs::File::options().write(true).open(shard(20, 0)).unwrap();
    truncated
        .set_len(truncated.metadata().unwrap().len() - 100)
        .unwrap();
    fs::create_dir(checkpoints.join(".tmp-step-000000040")).unwrap();
    fs::write(
        checkpoints.join(".tmp-step-000000040/rank-00000.safetensors"),
        b"half",
    )
    .unwrap();

    fixture
        .train("run", &["--resume", "--max-steps", "30"])
        .expect(0)
        .says(&[
            "step-000000030 is not used",
            "step-000000020 is not used",
            ".tmp-step-000000040 is not used",
            "resumed after step 10",
        ]);
    assert_eq!(fixture.losses("run"), whole);
    assert_eq!(
        fixture.tensors("run/checkpoints/step-000000030").len(),
        3 * 20
    );
}

#[test]
fn other_data_cannot_go_on() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "10"]).expect(0);
    let mut text = fs::read_to_string(fixture.path("one.txt")).unwrap();
    text.push_str("the hen sees the red fox .\n");
    fixture.write("one.txt", text);
    fixture
        .train("run", &["--resume"])
        .expect(2)
        .says(&["does not fit this run", "data"]);
}

#[test]
fn a_changed_config_goes_on_and_is_named() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "10"]).expect(0);
    let resumed = fixture.train(
        "run",
        &[
            "--resume",
            "--max-steps",
            "20",
            "--set",
            "optimizer.lr=1e-3",
        ],
    );
    resumed
        .expect(0)
        .says(&["the config differs", "optimizer.lr"]);
}

#[test]
fn a_run_that_is_done_says_so() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "10"]).expect(0);
    fixture
        .train("run", &["--resume", "--max-steps", "10"])
        .expect(0)
        .says(&["nothing left to train"]);
}

#[test]
fn resume_starts_afresh_where_there_is_nothing_yet() {
    let fixture = Fixture::new();
    fixture
        .train("run", &["--resume", "--max-steps", "3"])
        .expect(0)
        .says(&["fresh weights"]);
}

#[test]
fn going_back_leaves_the_newer_checkpoints_aside() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "30"]).expect(0);
    let whole = (fixture.losses("run"), fixture.tensors("run"));
    let back = [
        "train",
        "tiny.toml",
        "--resume=run/checkpoints/step-000000010",
        "--max-steps",
        "20",
    ];
    fixture.run(&back).expect(0).says(&[
        "resumed after step 10",
        "left-1-step-000000020",
        "left-1-step-000000030",
    ]);
    assert_eq!(fixture.losses("run").len(), 20);
    // The newest is that of the course the run is on now.
    fixture
        .train("run", &["--resume", "--max-steps", "30"])
        .expect(0)
        .says(&["resumed after step 20"]);
    assert_eq!((fixture.losses("run"), fixture.tensors("run")), whole);
}

#[test]
fn a_refused_resume_changes_nothing() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "20"]).expect(0);
    let files = || {
        [
            "config.toml",
            "tokenizer.json",
            "env.json",
            "metrics.jsonl",
            "events.jsonl",
        ]
        .map(|name| fs::read(fixture.path("run").join(name)).unwrap())
    };
    let before = files();
    let back = "--resume=run/checkpoints/step-000000010";
    fixture
        .run(&["train", "tiny.toml", back, "--set", "model.dim=64"])
        .expect(2)
        .says(&["another model", "model.dim: 32 -> 64"]);
    fixture
        .run(&["train", "tiny.toml", "--resume=cache"])
        .expect(2)
        .says(&["neither a run directory nor a checkpoint"]);
    assert_eq!(files(), before);
    assert!(
        fixture
            .path("run/checkpoints/step-000000020/MANIFEST.json")
            .exists()
    );
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_is_left_as_it_is() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "20"]).expect(0);
    let losses = fixture.losses("run");
    for step in [10, 20] {
        let shard = fixture.path(&format!(
            "run/checkpoints/step-{step:09}/rank-00000.safetensors"
        ));
        let mut bytes = fs::read(&shard).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&shard, bytes).unwrap();
    }
    fixture.train("run", &["--resume"]).expect(1).says(&[
        "no checkpoint of",
        "step-000000010",
        "step-000000020",
    ]);
    assert_eq!(fixture.losses("run"), losses);
}

#[test]
fn one_process_at_a_time_works_in_a_run() {
    let fixture = Fixture::new();
    let mut child = fixture.start("run", &["--set", "train.steps=100000"]);
    fixture.wait_for_step("run", 5);
    fixture
        .train("run", &["--resume"])
        .expect(1)
        .says(&["another cordee", &child.id().to_string()]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_checkpoint_outside_of_a_run_is_refused() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "10"]).expect(0);
    fs::create_dir_all(fixture.path("elsewhere/best")).unwrap();
    fs::rename(
        fixture.path("run/checkpoints/step-000000010"),
        fixture.path("elsewhere/best/step-000000010"),
    )
    .unwrap();
    let refused = fixture.run(&[
        "train",
        "tiny.toml",
        "--resume=elsewhere/best/step-000000010",
    ]);
    refused.expect(2).says(&["outside of a run directory"]);
    fixture
        .train("elsewhere", &["--resume"])
        .expect(2)
        .says(&["already exists"]);
}

#[test]
fn state_that_was_shared_out_goes_on_whole_and_the_other_way_round() {
    let fixture = Fixture::new();
    let workers = "parallel.workers=4";
    fixture.train("whole", &["--set", workers]).expect(0);
    for (before, after) in [("optimizer", "none"), ("none", "optimizer")] {
        let shard = |shard| format!("parallel.shard=\"{shard}\"");
        let train = |more: &[&str]| {
            let fixed = ["--set", workers];
            fixture
                .train(before, &[&fixed[..], more].concat())
                .expect(0)
        };
        train(&["--max-steps", "30", "--set", &shard(before)]);
        train(&["--resume", "--set", &shard(after)]);
        assert_eq!(fixture.losses("whole"), fixture.losses(before));
        assert_eq!(fixture.tensors("whole"), fixture.tensors(before));
    }
}
