//! Fine-tuning as it ships: examples, a small model, a config.

use std::path::Path;

use crate::fixture::Fixture;

#[test]
fn the_shipped_config_learns_its_examples() {
    let fixture = Fixture::new();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/fine-tune.toml");
    let cache = format!("data.cache_dir={:?}", fixture.path("cache"));
    let train = |more: &[&str]| {
        let arguments = [
            "train",
            config.to_str().unwrap(),
            "--run-dir",
            "run",
            "--set",
            &cache,
        ];
        fixture.run(&[&arguments, more].concat())
    };
    let trained = train(&["--max-steps", "30", "--set", "eval.every=5"]);
    trained.expect(0).says(&["gsm8k", "examples", "weights of"]);
    let losses: Vec<f64> = fixture
        .events("run")
        .iter()
        .filter(|event| event["event"] == "evaluation")
        .map(|event| {
            assert!(event["sources"][0].get("bits_per_byte").is_none());
            event["loss"].as_f64().unwrap()
        })
        .collect();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < first - 0.5 && last < 3.0, "{first} to {last}");
    fixture
        .run(&[
            "generate",
            "run",
            "--prompt",
            "Tom has 3 apples.",
            "--max-tokens",
            "8",
        ])
        .expect(0);
}
