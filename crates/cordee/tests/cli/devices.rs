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

/// Whether this machine has what a CUDA build needs, or what stands in for it; in CI it must.
#[cfg(feature = "cuda")]
#[expect(clippy::print_stderr, reason = "what is skipped is to be seen")]
fn has_cuda(fixture: &Fixture) -> bool {
    let report = fixture.run(&["doctor", "--json"]).stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    let libraries = report["libraries"].as_array().unwrap();
    let missing = libraries
        .iter()
        .any(|library| library["needed"] == true && library["found"].is_null());
    assert!(!missing || std::env::var_os("CI").is_none(), "{report}");
    if missing {
        eprintln!("skipped: {}", report["problems"]);
    }
    !missing
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_trains_as_in_pytorch() {
    let fixture = Fixture::new();
    if !has_cuda(&fixture) {
        return;
    }
    let trace = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../cordee-train/tests/golden/llama"
    );
    for (precision, recompute) in [("f32", "none"), ("f32", "full"), ("bf16", "light")] {
        let arguments = ["verify", "trace", trace, "--device=cuda"];
        let how = ["--precision", precision, "--recompute", recompute];
        let told = fixture.run(&[&arguments[..], &how].concat()).expect(0);
        let expected = format!("workers on cuda, recompute {recompute}, {precision}");
        assert!(told.stdout.contains(&expected), "{}", told.stdout);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_run_on_a_gpu_is_resumed_and_a_gpu_without_room_is_explained() {
    let fixture = Fixture::new();
    if !has_cuda(&fixture) {
        return;
    }
    let gpu = ["--device=cuda", "--set=parallel.workers=1"];
    let more = |more: &[&'static str]| [&gpu[..], more].concat();
    fixture.train("whole", &more(&["--max-steps=4"])).expect(0);
    fixture.train("parts", &more(&["--max-steps=2"])).expect(0);
    fixture
        .train("parts", &more(&["--max-steps=4", "--resume"]))
        .expect(0);
    assert_eq!(fixture.losses("whole"), fixture.losses("parts"));
    // On the CPU the same is learned, to rounding.
    let cpu = ["--device=cpu", "--set=parallel.workers=1", "--max-steps=4"];
    fixture.train("cpu", &cpu).expect(0);
    for (on_gpu, on_cpu) in fixture.losses("whole").iter().zip(fixture.losses("cpu")) {
        assert!((on_gpu - on_cpu).abs() < 1e-5 * on_cpu, "{on_gpu} {on_cpu}");
    }
    // Real GPUs do not know the variable, and have room.
    let arguments = ["train", "tiny.toml", "--run-dir=small", gpu[0], gpu[1]];
    let mut command = fixture.command(&arguments);
    let output = command.env("STAND_IN_MEMORY", "400000").output().unwrap();
    let small = crate::fixture::Finished::from(output);
    if small.code != Some(0) {
        small.expect(3).says(&[
            "out of GPU memory",
            "asked for",
            "by the plan it needs",
            "--set train.recompute=\"light\"",
        ]);
    }
}

/// A worker that cannot start is explained before it is started.
#[cfg(feature = "cuda")]
#[test]
fn a_machine_without_cuda_is_told_what_is_missing() {
    let fixture = Fixture::new();
    let report = fixture.run(&["config", "check", "tiny.toml"]).expect(0);
    assert!(report.stdout.contains("ok"));
    let mut command = fixture.command(&["verify", "operators", "--device=cpu"]);
    for variable in [
        "LD_LIBRARY_PATH",
        "CORDEE_LIBRARY_PATH",
        "CUDA_HOME",
        "CUDA_PATH",
    ] {
        command.env_remove(variable);
    }
    let finished = crate::fixture::Finished::from(command.output().unwrap());
    // Where CUDA is installed it is found all the same.
    if finished.code != Some(0) {
        finished.expect(3).says(&["libcublas.so", "looked in"]);
    }
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
