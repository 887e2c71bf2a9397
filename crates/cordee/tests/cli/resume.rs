//! A run that was cut goes on as if nothing had happened.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::Fixture;

fn pid(child: &std::process::Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).unwrap()
}

#[test]
fn thirty_steps_a_kill_and_thirty_more_equal_sixty() {
    let fixture = Fixture::new();
    fixture.train("whole", &[]).expect(0);

    let mut child = fixture.start("cut", &[]);
    fixture.wait_for_step("cut", 33);
    kill_process(pid(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
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
    fixture
        .train(
            "changed",
            &["--max-steps", "30", "--set", "parallel.workers=4"],
        )
        .expect(0);
    fixture
        .train("changed", &["--resume", "--set", "parallel.workers=1"])
        .expect(0);
    let whole = fixture.losses("whole");
    for (a, b) in whole.iter().zip(fixture.losses("changed")).take(25) {
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} and {b}");
    }
    assert_eq!(fixture.losses("changed").len(), 60);
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
