//! A run's weights as a Hugging Face directory.

use std::fs;

use serde_json::Value;

use crate::fixture::Fixture;

#[test]
fn an_export_generates_what_its_run_does() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "20"]).expect(0);
    fixture.run(&["export", "run", "model"]).expect(0);
    let config = fs::read(fixture.path("model/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["model_type"], "llama");
    assert_eq!(config["num_key_value_heads"], 2);
    assert_eq!(config["max_position_embeddings"], 32);
    assert_eq!(config["torch_dtype"], "float32");
    assert!(config["eos_token_id"].is_u64());

    let generate = |model: &str| {
        let arguments = [
            "generate",
            model,
            "--prompt",
            "the red",
            "--max-tokens",
            "24",
        ];
        fixture.run(&arguments).expect(0).stdout
    };
    assert_eq!(generate("model"), generate("run"));

    // Half the size.
    fixture
        .run(&["export", "run", "half", "--dtype", "bf16"])
        .expect(0);
    let size = |model: &str| {
        let path = fixture.path(&format!("{model}/model.safetensors"));
        fs::metadata(path).unwrap().len()
    };
    assert!(size("half") * 2 < size("model") + 4096);
    generate("half");
}

#[test]
fn nothing_is_exported_over_what_is_there() {
    let fixture = Fixture::new();
    fixture.train("run", &["--max-steps", "1"]).expect(0);
    let refused = fixture.run(&["export", "run", "run"]).expect(2);
    assert!(
        refused.stderr.contains("run is not empty"),
        "{}",
        refused.stderr
    );
    let none = fixture.run(&["export", "nowhere", "model"]).expect(2);
    assert!(
        none.stderr
            .contains("neither a run directory nor a checkpoint")
    );
    assert!(!fixture.path("model").exists());
}
