//! Ranks with a GPU each, or with what stands in for one: the command line, as users have it.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test panics where something is wrong")]
#![expect(clippy::print_stdout, reason = "what is skipped is to be seen")]

use std::process::Command;

use cordee_ops::{Device, GpuOptions};

/// Runs `cordee` with what stands in for `gpus` GPUs, where something does.
fn cordee(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_cordee"))
        .args(arguments)
        .env("NO_COLOR", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    println!("{arguments:?} {variables:?}\n{text}");
    (output.status.code().unwrap_or(-1), text)
}

fn there_is_a_gpu() -> bool {
    let gpus = Device::gpus();
    assert!(
        gpus > 0 || std::env::var_os("CI").is_none(),
        "there is no GPU, and nothing stands in for one"
    );
    if gpus == 0 {
        println!("skipped: there is no GPU, and nothing stands in for one");
    }
    gpus > 0
}

/// More GPUs than one has only the stand-in on request; a machine that has them needs no request.
const TWO: (&str, &str) = ("STAND_IN_DEVICES", "2");

const COLLECTIVES: [&str; 4] = ["verify", "collectives", "--device=cuda", "--workers=2"];

#[test]
fn every_collective_is_right_over_nccl() {
    if !there_is_a_gpu() {
        return;
    }
    let slow = ("STAND_IN_NCCL_DELAY", "2");
    for variables in [&[TWO][..], &[TWO, slow]] {
        let (code, text) = cordee(&COLLECTIVES, variables);
        assert_eq!(code, 0);
        let last = text.lines().rfind(|line| line.starts_with("right: "));
        assert!(
            last.is_some_and(|line| line.contains("2 workers on cuda, NCCL 2.")),
            "{text}"
        );
    }
}

#[test]
fn workers_share_a_gpu_only_for_tests() {
    if !there_is_a_gpu() || Device::gpus() > 1 {
        return;
    }
    let (code, text) = cordee(&COLLECTIVES, &[]);
    assert_eq!(code, 3);
    assert!(text.contains("GPU 1: there are 1 GPUs"), "{text}");
    let (code, _) = cordee(&COLLECTIVES, &[("CORDEE_TEST_WORKERS_PER_GPU", "2")]);
    assert_eq!(code, 0);
}

#[test]
fn a_collective_that_fails_ends_the_run_with_all_that_is_known() {
    if !there_is_a_gpu() {
        return;
    }
    // Of the stand-in's.
    let fail = ("STAND_IN_NCCL_FAIL", "1:5");
    let (code, text) = cordee(&COLLECTIVES, &[TWO, fail]);
    assert_eq!(code, 1);
    for words in [
        "rank 1 of the 2 of group `ranks`: all_reduce #",
        "unhandled system error",
        "collective 5 was to fail",
        "begun, #",
    ] {
        assert!(text.contains(words), "{words}");
    }
}

#[test]
fn steps_of_two_gpus_are_those_that_were_recorded() {
    if !there_is_a_gpu() {
        return;
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../cordee-train/tests/golden/");
    for family in ["llama", "gpt2"] {
        let trace = format!("{golden}{family}");
        for precision in ["f32", "bf16"] {
            let arguments = [
                "verify",
                "trace",
                &trace,
                "--device=cuda",
                "--workers=2",
                "--precision",
            ];
            let (code, _) = cordee(&[&arguments[..], &[precision]].concat(), &[TWO]);
            assert_eq!(code, 0, "{family} in {precision}");
        }
    }
}

/// Weights and moments in bf16 alone: a run that is stopped and goes on, on one GPU or with its state
/// shared out over two, has the bits of one that is not.
#[test]
fn a_state_in_bf16_is_saved_resumed_and_shared_out() {
    if !there_is_a_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = path("text.txt");
    std::fs::write(
        &text,
        "all of the people of the town went to the sea. ".repeat(200),
    )
    .unwrap();
    let config = path("tiny.toml");
    let tiny = format!(
        "model = {{ dim = 32, layers = 2, heads = 2, ffn = 64 }}\n\
         data = {{ seq_len = 16, vocab_size = 260, cache_dir = {:?}, sources = [{{ name = \"text\", path = {text:?} }}] }}\n\
         train = {{ steps = 8, global_batch_size = 4, micro_batch_size = 2 }}\n\
         schedule = {{ warmup_steps = 1 }}\n\
         precision = {{ compute = \"bf16\", states = \"bf16\" }}\n",
        path("cache")
    );
    std::fs::write(&config, tiny).unwrap();
    let train = |name: &str, more: &[&str]| {
        let run_dir = path(name);
        let arguments = ["train", &config, "--device=cuda", "--run-dir", &run_dir];
        let (code, text) = cordee(&[&arguments[..], more].concat(), &[TWO]);
        assert_eq!(code, 0);
        text
    };
    // The tensors, each with its hash; the lines before them name the run.
    let tensors = |name: &str| {
        let (code, text) = cordee(&["checkpoint", "inspect", &path(name)], &[]);
        assert_eq!(code, 0);
        let lines = text.lines().filter(|line| line.contains("BF16"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let one = ["--set", "parallel.workers=1"];
    let said = train("whole", &one);
    assert!(said.contains("rounded stochastically"), "{said}");
    train("halves", &[&one[..], &["--max-steps", "4"]].concat());
    train("halves", &[&one[..], &["--resume"]].concat());
    let whole = tensors("whole");
    assert_eq!(whole.len() % 3, 0, "weights and two moments each");
    assert!(whole.len() > 3 * 18, "{whole:?}");
    assert_eq!(whole, tensors("halves"));

    let two = ["--set", "parallel.workers=2"];
    let shared = [&two[..], &["--set", "parallel.shard=optimizer"]].concat();
    train("two", &two);
    train("shared", &shared);
    assert_eq!(tensors("two"), tensors("shared"));

    // Widened where it is read.
    let generated = |device| {
        let run = path("whole");
        let prompt = [
            "--prompt",
            "the people",
            "--max-tokens",
            "4",
            "--temperature",
            "0",
        ];
        let (code, text) = cordee(&[&["generate", &run, device], &prompt[..]].concat(), &[]);
        assert_eq!(code, 0);
        text
    };
    assert_eq!(generated("--device=cpu"), generated("--device=cuda"));
    let (code, text) = cordee(&["export", &path("whole"), &path("exported")], &[]);
    assert_eq!(code, 0, "{text}");
}

/// Of models as large as are trained: nothing is computed, but all memory is asked for.
#[test]
fn a_step_takes_the_memory_that_plan_says() {
    if !there_is_a_gpu() {
        return;
    }
    let gpu = Device::gpu(0, &GpuOptions::default()).unwrap();
    if !gpu.facts().unwrap().name.starts_with("stand-in") {
        println!("skipped: a GPU that computes is not for this");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("large.toml");
    let config = config.to_str().unwrap();
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/sotu.en.txt");
    let models = [
        "dim = 768, layers = 12, heads = 12, ffn = 2048, vocab_size = 50304, tie_embeddings = true",
        "dim = 2048, layers = 16, heads = 32, kv_heads = 8, ffn = 8192, vocab_size = 128256",
    ];
    let modes = [
        "compute = \"bf16\"",
        "compute = \"bf16\", states = \"bf16\"",
    ];
    for (model, precision) in models
        .iter()
        .flat_map(|model| modes.map(|mode| (model, mode)))
    {
        let large = format!(
            "model = {{ {model} }}\n\
             data = {{ seq_len = 1024, sources = [{{ name = \"text\", path = {text:?} }}] }}\n\
             train = {{ steps = 2, global_batch_size = 8, micro_batch_size = 8 }}\n\
             schedule = {{ warmup_steps = 1 }}\n\
             precision = {{ {precision} }}\n\
             parallel = {{ workers = 1, device = \"cuda\" }}\n"
        );
        std::fs::write(config, large).unwrap();
        // The number of a line's first word that has one.
        let said = |arguments: &[&str], line: &str, unit: &str| -> f64 {
            let (code, text) = cordee(arguments, &[("STAND_IN_IDLE", "1")]);
            assert_eq!(code, 0);
            let line = text.lines().find_map(|text| text.strip_prefix(line));
            let number = line.unwrap().split(unit).next().unwrap();
            number.trim().parse().unwrap()
        };
        let planned = 1024.0 * said(&["plan", config], "peak ", "GiB");
        let bench = [
            "bench",
            "train",
            "--config",
            config,
            "--warmup=1",
            "--steps=1",
        ];
        let taken = said(&bench, "GPU memory ", "MiB");
        let error = (taken / planned - 1.0).abs();
        assert!(error < 0.02, "{taken} MiB, planned {planned}");
    }
}
