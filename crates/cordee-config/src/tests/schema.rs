//! The description of the schema against serde, which has the last word.

use serde::Deserialize;
use toml::{Table, Value};

use super::example;
use crate::{
    Config, Gelu, ModelConfig, RopeScaling, RopeScalingKind, TooLong,
    describe::{Key, Section, Shape},
    names::{FOREIGN_NAMES, FOREIGN_NOTIONS, root, walk},
    reference,
    render::values,
};

/// The smallest config with every optional key.
fn full() -> Table {
    let sets = [
        "data={tokenizer='t.json',cache_dir='c'}",
        "data.sources=[{name='a',path='a',weight=1,document_separator='x'}]",
        "parallel={workers=2,threads=2}",
    ];
    let mut config = example(&sets).config;
    // No one family has all of these.
    config.model = ModelConfig {
        init_from: Some("m".into()),
        vocab_size: Some(300),
        kv_heads: Some(4),
        head_dim: Some(16),
        max_positions: Some(32),
        rope_local_theta: Some(1e4),
        rope_scaling: Some(RopeScaling {
            kind: RopeScalingKind::Llama3,
            factor: 8.0,
            low_freq_factor: Some(1.0),
            high_freq_factor: Some(4.0),
            original_max_positions: Some(16),
        }),
        sliding_window: Some(8),
        full_attention_layers: Some(vec![1]),
        query_pre_attn_scalar: Some(16),
        gelu: Some(Gelu::Tanh),
        ..config.model
    };
    // No source may have these beside a separator, which is checked elsewhere.
    let source = &mut config.data.sources[0];
    source.prompt_key = Some("p".to_owned());
    source.completion_key = Some("c".to_owned());
    source.messages_key = Some("m".to_owned());
    source.too_long = Some(TooLong::Skip);
    values(&config)
}

/// The table at a path of section names, in which a list stands for its first element.
fn section_at<'a>(table: &'a mut Table, path: &str) -> &'a mut Table {
    path.split('.')
        .filter(|name| !name.is_empty())
        .fold(table, |table, name| match &mut table[name] {
            Value::Table(table) => table,
            Value::Array(elements) => elements[0].as_table_mut().expect("a list of tables"),
            other => panic!("{path} is {other}"),
        })
}

fn every_key(visit: &mut dyn FnMut(&str, &'static Key)) {
    walk(root(), "", visit);
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

#[test]
fn every_key_is_described() {
    fn compare(path: &str, section: &Section, table: &Table) {
        let mut described: Vec<_> = section.keys.iter().map(|key| key.name).collect();
        described.sort_unstable();
        let mut serialized: Vec<_> = table.keys().map(String::as_str).collect();
        serialized.sort_unstable();
        assert_eq!(described, serialized, "[{path}]");
        for key in section.keys {
            assert!(!key.doc.trim().is_empty(), "{}", key.name);
            match (key.shape, &table[key.name]) {
                (Shape::Section(section), Value::Table(table)) => compare(key.name, section, table),
                (Shape::Sections(section), Value::Array(elements)) => {
                    compare(key.name, section, elements[0].as_table().unwrap());
                }
                (Shape::Leaf(leaf), value) => assert!((leaf.read)(value).is_ok(), "{}", key.name),
                (shape, value) => panic!("{} is {shape:?}, but {value}", key.name),
            }
        }
    }
    compare("", root(), &full());
}

#[test]
fn required_is_what_serde_requires() {
    every_key(&mut |path, key| {
        let mut table = full();
        let (section, name) = split(path);
        assert!(
            section_at(&mut table, section).remove(name).is_some(),
            "{path}"
        );
        let read = Config::deserialize(Value::Table(table));
        assert_eq!(read.is_err(), key.required, "{path}");
    });
}

#[test]
fn choices_are_what_serde_takes() {
    every_key(&mut |path, key| {
        let Shape::Leaf(leaf) = key.shape else { return };
        for choice in leaf.choices {
            assert!(
                (leaf.read)(&Value::String(choice.name.to_owned())).is_ok(),
                "{path}"
            );
            assert!(!choice.doc.trim().is_empty(), "{path} = {}", choice.name);
        }
    });
}

#[test]
fn hints_lead_to_keys_that_exist() {
    let mut paths = Vec::new();
    let mut names = Vec::new();
    every_key(&mut |path, key| {
        paths.push(path.to_owned());
        names.push(key.name);
    });
    for (foreign, ours) in FOREIGN_NAMES {
        assert!(paths.iter().any(|path| path == ours), "{ours}");
        assert!(!names.contains(foreign), "{foreign} is a key of ours");
    }
    for (foreign, hint) in FOREIGN_NOTIONS {
        assert!(!names.contains(foreign), "{foreign} is a key of ours");
        for quoted in hint
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.contains('.'))
        {
            assert!(paths.iter().any(|path| path == quoted), "{quoted}");
        }
    }
}

#[test]
fn the_reference_page() {
    let page = reference();
    every_key(&mut |path, key| {
        if matches!(key.shape, Shape::Leaf(_)) {
            assert!(page.contains(&format!("\n| `{}` |", key.name)), "{path}");
        }
    });
    assert_text!(page);
}
