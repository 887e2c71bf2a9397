//! Runs that begin from weights that others trained.

use std::path::Path;

use crate::fixture::Fixture;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cordee-train/tests/golden");

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/stories260k");

/// Config with a model as its `config.json` says, over the little text of the fixture.
fn config(fixture: &Fixture, family: &str) {
    let tiny = std::fs::read_to_string(fixture.path("tiny.toml")).unwrap();
    let (_, rest) = tiny.split_once("[data]").unwrap();
    let directory = Path::new(GOLDEN).join(family);
    let model = format!("[model]\ninit_from = {:?}\n", directory.to_str().unwrap());
    fixture.write("tiny.toml", format!("{model}\n[data]{rest}"));
}

#[test]
fn a_run_begins_from_the_weights_of_a_directory() {
    let fixture = Fixture::new();
    config(&fixture, "qwen3");
    fixture
        .train("none", &["--max-steps", "1"])
        .expect(2)
        .says(&["qwen3 has weights but no tokenizer.json", "data.tokenizer"]);
    let tokenizer = format!("data.tokenizer={TOKENIZER:?}");
    // A rate too small to change a weight: what is saved is what was loaded, whatever the seed.
    for seed in ["1", "2"] {
        fixture
            .train(
                seed,
                &[
                    "--max-steps",
                    "1",
                    "--seed",
                    seed,
                    "--set",
                    "optimizer.lr=1e-30",
                    "--set",
                    &tokenizer,
                ],
            )
            .expect(0)
            .says(&["qwen3, 3 layers", "step 0, weights of", "golden/qwen3"]);
    }
    let weights = |run| {
        let mut tensors = fixture.tensors(run);
        tensors.retain(|line| !line.contains("adamw."));
        tensors
    };
    assert_eq!(weights("1"), weights("2"));
    assert!(weights("1").len() > 30, "{:?}", weights("1"));
    fixture
        .train("1", &["--max-steps", "2", "--resume", "--set", &tokenizer])
        .expect(0)
        .says(&["resumed after step 1"]);
}

#[test]
fn a_vocabulary_that_is_too_small_is_refused() {
    Fixture::new()
        .train("run", &["--set", "model.vocab_size=280"])
        .expect(2)
        .says(&["model.vocab_size is 280", "300 tokens", "data.tokenizer"]);
}
