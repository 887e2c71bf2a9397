//! `model.init_from`: a `config.json` as a layer below what is written.

use std::fs;

use super::Directory;
use crate::{Machine, ModelFamily, Origin, reference::EXAMPLE};

const CONFIG_JSON: &str = r#"{
  "model_type": "qwen3", "hidden_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
  "intermediate_size": 128, "max_position_embeddings": 256, "vocab_size": 300,
  "rope_parameters": {"rope_theta": 1000000, "rope_type": "linear", "factor": 2},
  "tie_word_embeddings": true
}"#;

/// The smallest config with `model` for what stands in `[model]`.
fn config(model: &str) -> String {
    let (_, rest) = EXAMPLE.split_once("\n\n").unwrap();
    format!("[model]\n{model}\n\n{rest}")
}

fn directory(model: &str) -> Directory {
    Directory::new(&[
        ("configs/run.toml", &config(model)),
        ("qwen/config.json", CONFIG_JSON),
        ("moe/config.json", r#"{"model_type": "qwen3_moe"}"#),
    ])
}

#[test]
fn a_config_json_gives_the_architecture() {
    let directory = directory("init_from = '../qwen'");
    let loaded = directory.load("configs/run.toml", &[]).unwrap();
    let model = &loaded.config.model;
    assert_eq!(model.family, ModelFamily::Qwen3);
    assert_eq!((model.dim, model.kv_heads), (64, Some(2)));
    assert_eq!(
        model.rope_scaling.as_ref().map(|rope| rope.factor),
        Some(2.0)
    );
    let Origin::File { path, line } = loaded.origin("model.layers") else {
        panic!("the file decides it")
    };
    assert!(path.ends_with("qwen/config.json"));
    assert_eq!(line, 3);
    assert!(matches!(
        loaded.origin("model.init_from"),
        Origin::File { line: 2, .. }
    ));
}

#[test]
fn what_is_written_as_well_must_agree() {
    let agrees = directory("init_from = '../qwen'\ndim = 64\nrope_theta = 1000000");
    agrees
        .load("configs/run.toml", &["model.tie_embeddings=true"])
        .unwrap();
    let error = |model: &str, sets: &[&str]| {
        let directory = directory(model);
        let error = directory.load("configs/run.toml", sets).unwrap_err();
        directory.relative(&format!("error: {error}\n"))
    };
    let errors = [
        error(
            "init_from = '../qwen'\ndim = 32\nsliding_window = 8",
            &["model.layers=3"],
        ),
        error(
            "init_from = '../qwen'",
            &["model.rope_scaling={kind='linear',factor=4}"],
        ),
        error("init_from = '../moe'", &[]),
        error("init_from = '../nowhere'", &[]),
        error("init_from = 3", &[]),
    ];
    assert_text!(errors.join("\n"));
}

#[test]
fn a_resolved_config_outlives_the_directory() {
    let directory = directory("init_from = '../qwen'");
    let mut plan = directory
        .load("configs/run.toml", &[])
        .unwrap()
        .plan(Machine::cpu(2))
        .unwrap();
    plan.config.make_paths_absolute(&directory.path("configs"));
    fs::write(directory.path("resolved.toml"), plan.config.to_toml()).unwrap();
    fs::remove_dir_all(directory.path("qwen")).unwrap();
    let again = directory.load("resolved.toml", &[]).unwrap();
    assert_eq!(again.config, plan.config);
    assert_eq!(
        again.plan(Machine::cpu(2)).unwrap().fingerprint,
        plan.fingerprint
    );
    assert!(directory.load("configs/run.toml", &[]).is_err());
}
