//! The same run gives the same bits; another world size gives the same run to rounding.

use serde_json::Value;

use crate::fixture::Fixture;

/// The steps of a run without what depends on the clock.
fn without_times(mut steps: Vec<Value>) -> Vec<Value> {
    for step in &mut steps {
        for field in cordee_metrics::TIMING_FIELDS {
            step.as_object_mut().unwrap().remove(*field);
        }
    }
    steps
}

fn final_validation_loss(fixture: &Fixture, run: &str) -> f64 {
    let events = fixture.events(run);
    let evaluation = events
        .iter()
        .rfind(|event| event["event"] == "evaluation")
        .unwrap();
    evaluation["loss"].as_f64().unwrap()
}

#[test]
fn two_runs_of_one_config_are_equal() {
    let fixture = Fixture::new();
    fixture.train("a", &[]).expect(0);
    // Neither another number of threads nor a cold cache may change a bit.
    fixture
        .train(
            "b",
            &[
                "--set",
                "parallel.threads=3",
                "--set",
                "data.cache_dir=\"cold\"",
            ],
        )
        .expect(0);
    let steps = without_times(fixture.steps("a"));
    assert_eq!(steps.len(), 60);
    assert!(steps[0].as_object().unwrap().len() > 5, "{:?}", steps[0]);
    assert_eq!(steps, without_times(fixture.steps("b")));
    assert_eq!(fixture.tensors("a"), fixture.tensors("b"));
    assert!(!fixture.tensors("a").is_empty());
}

#[test]
fn another_seed_is_another_run() {
    let fixture = Fixture::new();
    fixture.train("a", &["--max-steps", "3"]).expect(0);
    fixture
        .train("b", &["--max-steps", "3", "--seed", "2"])
        .expect(0);
    assert_ne!(fixture.losses("a"), fixture.losses("b"));
}

#[test]
fn world_sizes_agree() {
    let fixture = Fixture::new();
    for workers in ["1", "2", "4"] {
        fixture
            .train(workers, &["--set", &format!("parallel.workers={workers}")])
            .expect(0);
    }
    let alone = fixture.losses("1");
    assert!(alone[59] < 0.8 * alone[0], "it learns: {alone:?}");
    for workers in ["2", "4"] {
        for (step, (a, b)) in alone
            .iter()
            .zip(fixture.losses(workers))
            .take(25)
            .enumerate()
        {
            let tolerance = if step < 3 { 1e-6 } else { 1e-5 };
            assert!(
                (a - b).abs() <= tolerance * a.abs(),
                "step {}: {a} alone, {b} with {workers}",
                step + 1
            );
        }
        let (a, b) = (
            final_validation_loss(&fixture, "1"),
            final_validation_loss(&fixture, workers),
        );
        assert!(
            (a - b).abs() <= 0.02 * a,
            "validation loss {a} alone, {b} with {workers}"
        );
    }
}

#[test]
fn accumulation_does_not_change_the_result_beyond_rounding() {
    let fixture = Fixture::new();
    fixture
        .train(
            "small",
            &["--max-steps", "10", "--set", "train.micro_batch_size=1"],
        )
        .expect(0);
    fixture
        .train(
            "large",
            &["--max-steps", "10", "--set", "train.micro_batch_size=4"],
        )
        .expect(0);
    for (a, b) in fixture.losses("small").iter().zip(fixture.losses("large")) {
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} and {b}");
    }
}

#[test]
fn what_is_computed_again_changes_no_bit() {
    let fixture = Fixture::new();
    for recompute in ["none", "light", "full"] {
        let set = format!("train.recompute=\"{recompute}\"");
        fixture
            .train(recompute, &["--max-steps", "5", "--set", &set])
            .expect(0)
            .says(&[&format!("{recompute}: ")]);
    }
    for other in ["light", "full"] {
        assert_eq!(
            without_times(fixture.steps("none")),
            without_times(fixture.steps(other))
        );
        assert_eq!(fixture.tensors("none"), fixture.tensors(other));
    }
}

#[test]
fn how_gradients_are_summed_and_state_is_shared_out_changes_no_bit() {
    let fixture = Fixture::new();
    let small_buckets = "parallel.bucket_size=\"8KiB\"";
    for workers in ["2", "3"] {
        let train = |run: &str, more: &[&str]| {
            let workers = format!("parallel.workers={workers}");
            // Sequences that two and three workers can share.
            let fixed = [
                "--max-steps",
                "6",
                "--set",
                &workers,
                "--set",
                small_buckets,
            ];
            let batch = ["--set", "train={global_batch_size=12,micro_batch_size=2}"];
            let run = format!("{run}-{workers}");
            fixture
                .train(&run, &[&fixed[..], &batch[..], more].concat())
                .expect(0);
            run
        };
        let whole = train("whole", &[]);
        let after = train("after", &["--set", "parallel.overlap=false"]);
        let shared = train("shared", &["--set", "parallel.shard=\"optimizer\""]);
        for other in [after, shared] {
            let (left, right) = (fixture.steps(&whole), fixture.steps(&other));
            assert_eq!(without_times(left), without_times(right), "{other}");
            assert_eq!(fixture.tensors(&whole), fixture.tensors(&other), "{other}");
        }
    }
}
