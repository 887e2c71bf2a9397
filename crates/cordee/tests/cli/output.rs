//! What a run leaves behind and what is printed.

use crate::fixture::{Finished, Fixture};

#[test]
fn a_run_directory_holds_what_decides_the_run() {
    let fixture = Fixture::new();
    let set = "optimizer.weight_decay=0.05";
    fixture
        .train("run", &["--max-steps", "10", "--set", set])
        .expect(0)
        .says(&[
            "model",
            "parameters",
            "batch",
            "2 = micro 2",
            "precision",
            "bits/byte",
            "unigram",
        ]);
    for name in [
        "config.toml",
        "config.source.toml",
        "overrides.txt",
        "env.json",
        "events.jsonl",
        "metrics.jsonl",
        "tokenizer.json",
        "tb",
        "logs/rank-000.log",
        "logs/rank-001.log",
        "checkpoints/step-000000010/MANIFEST.json",
        "checkpoints/step-000000010/rank-00000.safetensors",
        "checkpoints/step-000000010/rank-00001.safetensors",
        "checkpoints/LATEST",
    ] {
        assert!(fixture.path("run").join(name).exists(), "{name} is missing");
    }
    let read = |name: &str| std::fs::read_to_string(fixture.path("run").join(name)).unwrap();
    assert_eq!(read("overrides.txt"), format!("{set}\n"));
    assert!(read("config.toml").contains("weight_decay = 0.05"));
    assert_eq!(
        read("config.source.toml"),
        std::fs::read_to_string(fixture.path("tiny.toml")).unwrap()
    );
}

#[test]
fn the_run_directorys_config_gives_the_same_run() {
    let fixture = Fixture::new();
    fixture.train("a", &["--max-steps", "5"]).expect(0);
    fixture
        .run(&[
            "train",
            "a/config.toml",
            "--run-dir",
            "b",
            "--max-steps",
            "5",
        ])
        .expect(0);
    assert_eq!(fixture.losses("a"), fixture.losses("b"));
}

#[test]
fn a_dry_run_starts_nothing() {
    let fixture = Fixture::new();
    let dry = fixture.train("run", &["--dry-run"]).expect(0);
    assert!(
        dry.stdout
            .contains("2 ranks x micro-batch 2 x 2 accumulation steps"),
        "{}",
        dry.stdout
    );
    assert!(!fixture.path("run").exists());
    assert!(!fixture.path("cache").exists());
}

#[test]
fn progress_as_json_is_data() {
    let fixture = Fixture::new();
    let run = fixture
        .train("run", &["--max-steps", "3", "--progress", "json"])
        .expect(0);
    let kinds: Vec<String> = run
        .stdout
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        kinds.iter().filter(|kind| *kind == "step").count(),
        3,
        "{kinds:?}"
    );
    assert_eq!(kinds.last().map(String::as_str), Some("summary"));
}

#[test]
fn no_progress_is_silent() {
    let fixture = Fixture::new();
    let run = fixture
        .train("run", &["--max-steps", "3", "--progress", "none"])
        .expect(0);
    assert_eq!(run.stdout, "");
    assert_eq!(run.stderr, "");
}

#[test]
fn generated_text_follows_seed_and_temperature() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "20"]).expect(0);
    let generate = |more: &[&str]| {
        let arguments = [
            &[
                "generate",
                "run",
                "--prompt",
                "the red",
                "--max-tokens",
                "24",
            ],
            more,
        ]
        .concat();
        fixture.run(&arguments).expect(0).stdout
    };
    let text = generate(&["--seed", "1"]);
    assert!(
        text.starts_with("the red") && text.len() > "the red\n".len(),
        "{text}"
    );
    assert_eq!(text, generate(&["--seed", "1"]));
    assert_ne!(text, generate(&["--seed", "2", "--temperature", "1.5"]));
    let greedy = generate(&["--temperature", "0", "--seed", "1"]);
    assert_eq!(greedy, generate(&["--temperature", "0", "--seed", "2"]));
}

#[test]
fn config_show_names_origins() {
    let fixture = Fixture::new();
    let shown = fixture
        .run(&["config", "show", "tiny.toml", "--set", "optimizer.lr=1e-4"])
        .expect(0)
        .stdout;
    let line = |key: &str| {
        shown
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_else(|| panic!("{key}"))
            .to_owned()
    };
    assert!(line("lr =").contains("--set"), "{shown}");
    assert!(line("warmup_steps =").contains("tiny.toml:"), "{shown}");
    assert!(line("weight_decay =").contains("default"), "{shown}");
}

#[test]
fn a_list_of_devices_decides_the_ranks() {
    let fixture = Fixture::new();
    let arguments = [
        "train",
        "tiny.toml",
        "--run-dir",
        "run",
        "--max-steps",
        "2",
        "--set",
        "train.micro_batch_size=1",
    ];
    let output = fixture
        .command(&arguments)
        .env("CORDEE_DEVICES", ["cpu"; 8].join(","))
        .output()
        .unwrap();
    Finished::from(output)
        .expect(0)
        .says(&["micro 1 x accumulation 1 x ranks 8"]);
    assert!(fixture.path("run/logs/rank-007.log").exists());
}
