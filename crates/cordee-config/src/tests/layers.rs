//! Files on files, and arguments on top.

use std::path::{Path, PathBuf};

use super::{Directory, example, load_text};
use crate::{Count, Origin, reference::EXAMPLE};

fn layered() -> Directory {
    Directory::new(&[
        ("base/small.toml", EXAMPLE),
        (
            "base/h100.toml",
            "extends = 'small.toml'\n[optimizer]\nlr = 1e-3\nbetas = [0.9, 0.9]\n",
        ),
        (
            "runs/sft.v2.toml",
            "extends = '../base/h100.toml'\noptimizer.lr = 2e-3\ntrain.seed = 7\n",
        ),
    ])
}

#[test]
fn later_layers_win() {
    let loaded = layered()
        .load("runs/sft.v2.toml", &["train.seed=8", "train.seed=9"])
        .unwrap();
    let config = &loaded.config;
    assert_eq!(
        (config.optimizer.lr, config.optimizer.betas),
        (2e-3, [0.9, 0.9])
    );
    assert_eq!((config.train.seed, config.train.steps), (9, Count(10)));
}

#[test]
fn every_value_knows_its_origin() {
    let directory = layered();
    let loaded = directory
        .load("runs/sft.v2.toml", &["train={seed=8}"])
        .unwrap();
    let origin = |key| directory.relative(&loaded.origin(key).to_string());
    assert_eq!(origin("optimizer.lr"), "runs/sft.v2.toml:2");
    assert_eq!(origin("optimizer.betas"), "runs/../base/h100.toml:4");
    assert_eq!(origin("data.sources.0.path"), "runs/../base/small.toml:12");
    assert_eq!(origin("train.seed"), "--set train={seed=8}");
    assert_eq!(loaded.origin("optimizer.eps"), Origin::Default);
    assert_eq!(loaded.origin("no.such.key"), Origin::Default);
}

#[test]
fn what_was_given_is_kept() {
    let loaded = layered()
        .load("runs/sft.v2.toml", &["train.seed=8"])
        .unwrap();
    assert_eq!(loaded.name(), "sft.v2");
    assert_eq!(loaded.sets(), ["train.seed=8"]);
    assert!(loaded.source_text().starts_with("extends = "));
}

#[test]
fn arrays_are_replaced() {
    let text = format!("{EXAMPLE}\n[[data.sources]]\nname = 'b'\npath = 'b'\n");
    assert_eq!(load_text(&text, &[]).unwrap().config.data.sources.len(), 2);
    let loaded = load_text(&text, &["data.sources=[{name='c', path='c'}]"]).unwrap();
    assert_eq!(loaded.config.data.sources.len(), 1);
}

#[test]
fn paths_are_relative_to_the_file_that_gives_them() {
    let directory = Directory::new(&[
        ("base/small.toml", EXAMPLE),
        (
            "run.toml",
            "extends = 'base/small.toml'\n[data]\ncache_dir = '/var/cache'\ntokenizer = 't.json'",
        ),
    ]);
    let data = directory.load("run.toml", &[]).unwrap().config.data;
    assert_eq!(data.sources[0].path, directory.path("base/books.txt"));
    assert_eq!(data.cache_dir.as_deref(), Some(Path::new("/var/cache")));
    assert_eq!(data.tokenizer, Some(directory.path("t.json")));
    let data = directory
        .load("run.toml", &["data.tokenizer=tok.json"])
        .unwrap()
        .config
        .data;
    assert_eq!(data.tokenizer, Some(PathBuf::from("tok.json")));
}

#[test]
fn a_set_is_toml_or_a_bare_word() {
    let prompt = |set: &str| example(&[set]).config.eval.sample_prompt;
    assert_eq!(prompt("eval.sample_prompt=once"), "once");
    assert_eq!(
        prompt("eval.sample_prompt = Once upon = a # time "),
        "Once upon = a # time"
    );
    assert_eq!(prompt("eval.sample_prompt=\"true\""), "true");
    assert_eq!(prompt("eval.sample_prompt="), "");
    assert_eq!(prompt("\"eval\".'sample_prompt'=x"), "x");
    let config = example(&[
        "parallel={workers=4}",
        "optimizer.lr=1e-5",
        "model.tie_embeddings=true",
    ])
    .config;
    assert_eq!(config.parallel.workers, Some(4));
    assert_eq!(config.optimizer.lr.to_bits(), 1e-5f64.to_bits());
    assert!(config.model.tie_embeddings);
    assert_eq!(
        example(&["train.steps=2k"]).config.train.steps,
        Count(2_000)
    );
}
