//! What a run computes on, and what a machine has to compute with.

use serde_json::Value;

use crate::fixture::Fixture;

#[test]
fn the_doctor_tells_of_any_machine() {
    let fixture = Fixture::new();
    let text = fixture.run(&["doctor"]);
    let json = fixture.run(&["doctor", "--json"]);
    // 3 only where this build is for GPUs and something of theirs is missing.
    assert_eq!(text.code, json.code);
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["passed"], json.code == Some(0), "{report}");
    assert_eq!(report["cuda"], cfg!(feature = "cuda"));
    if !cfg!(feature = "cuda") {
        assert_eq!(json.code, Some(0), "{report}");
    }
    for told in [
        "machine\n",
        "processor",
        "memory",
        "free in",
        "GPUs\n",
        "ready",
    ] {
        assert!(text.stdout.contains(told), "{}", text.stdout);
    }
    assert!(report["machine"]["cores"].as_u64() >= Some(1));
}

#[test]
fn what_was_computed_on_is_written_down() {
    let fixture = Fixture::new();
    let more = ["--device", "cpu", "--max-steps", "1", "--progress", "plain"];
    let run = fixture.train("run", &more).expect(0);
    let config = std::fs::read_to_string(fixture.path("run/config.toml")).unwrap();
    assert!(config.contains("device = \"cpu\""), "{config}");
    assert!(run.stderr.contains("on the CPU"), "{}", run.stderr);
}

#[test]
fn bf16_is_refused_on_the_cpu() {
    let fixture = Fixture::new();
    let sets = ["--device", "cpu", "--set", "precision.compute=bf16"];
    let refused = fixture.train("run", &sets).expect(2);
    refused.says(&["`compute` in `[precision]`", "on GPUs only", "\"f32\""]);
    assert!(!fixture.path("run").exists());
    for verb in [
        &["verify", "operators", "--device=cpu", "--precision=bf16"][..],
        &["verify", "trace", ".", "--device=cpu", "--precision=bf16"],
    ] {
        fixture.run(verb).expect(2).says(&["bf16 is for GPUs"]);
    }
    let bench = ["bench", "train", "--device=cpu", "--precision=bf16"];
    fixture.run(&bench).expect(2).says(&["on GPUs only"]);
}

#[test]
fn a_run_on_gpus_is_planned_anywhere() {
    let fixture = Fixture::new();
    let plan = |precision: &str, memory: &str| {
        let sets = [
            "plan",
            "tiny.toml",
            "--workers=4",
            "--set=parallel.device=cuda",
            &format!("--set=precision.compute={precision}"),
            &format!("--memory={memory}"),
        ];
        fixture.run(&sets)
    };
    let roomy = plan("bf16", "80GiB").expect(0).stdout;
    assert!(roomy.contains("each of 4 ranks on cuda, bf16"), "{roomy}");
    assert!(
        roomy.contains("it fits: 80.0GiB of each rank's GPU"),
        "{roomy}"
    );
    let tight = plan("f32", "1MiB").expect(1).stdout;
    assert!(tight.contains("it does not fit"), "{tight}");
    // Fewer workers leave no more to a GPU.
    assert!(!tight.contains("parallel.workers"), "{tight}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_for_the_cpu_refuses_gpus() {
    let fixture = Fixture::new();
    let refused = fixture.train("run", &["--device", "cuda"]).expect(2);
    refused.says(&["parallel.device is \"cuda\"", "--features cuda"]);
    let verb = ["verify", "operators", "--device=cuda"];
    fixture.run(&verb).expect(2).says(&["--features cuda"]);
}
