//! `model.init_from`: the `config.json` of a Hugging Face directory as a layer below `[model]`.
//!
//! It must not know how a `config.json` is read, which is for `hugging_face`, nor look at weights.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::Value;

use crate::{
    describe::{Section, Shape},
    diagnostic::{ConfigError, Diagnostic},
    hugging_face::{self, CONFIG_FILE},
    names::{key_in_words, root},
    render::spell,
    schema::ModelConfig,
    source::{Place, Source, SourceKind},
    tree::{Content, Entry, Node, Table, find},
};

const INIT_FROM: &str = "init_from";

/// Fills in `[model]` from the directory that `model.init_from` names, if it does.
///
/// A directory that is gone is no error where all keys are written: the resolved config of a run
/// names every one, and outlives what the run began from.
pub(crate) fn add_architecture(tree: &mut Table) -> Result<(), ConfigError> {
    let Some((_, node)) = find(tree, "model.init_from") else {
        return Ok(());
    };
    let Content::Scalar(Value::String(directory)) = &node.content else {
        // The check against the schema says so.
        return Ok(());
    };
    let asked = node.place.clone();
    let path = match &asked.source.kind {
        SourceKind::File(file) => file.parent().unwrap_or(Path::new("")).join(directory),
        SourceKind::Set => PathBuf::from(directory),
    }
    .join(CONFIG_FILE);
    let Some(Content::Table(written)) = tree.get_mut("model").map(|entry| &mut entry.node.content)
    else {
        return Ok(());
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_complete(written) => {
            return Ok(());
        }
        Err(error) => return Err(unreadable(&path, &asked, error)),
    };
    let model = hugging_face::from_json(&text).map_err(|error| {
        ConfigError::Invalid(vec![Diagnostic {
            message: format!("{}: {error}", path.display()),
            location: Some(asked.location()),
            hint: error.hint(),
        }])
    })?;
    let source = Arc::new(Source {
        kind: SourceKind::File(path),
        text,
    });
    lay_below(written, model_tree(&model, &source), &source)
}

/// Whether every key that `[model]` requires is written.
fn is_complete(written: &Table) -> bool {
    let required = model_section().keys.iter().filter(|key| key.required);
    required
        .into_iter()
        .all(|key| written.contains_key(key.name))
}

fn model_section() -> &'static Section {
    let model = root().keys.iter().find(|key| key.name == "model");
    match model.map(|key| key.shape) {
        Some(Shape::Section(section)) => section,
        _ => unreachable!("a config has a section `[model]`"),
    }
}

/// Adds to `written` what it lacks of `below`; what it has must be the same.
fn lay_below(written: &mut Table, mut below: Table, source: &Source) -> Result<(), ConfigError> {
    let mut contradictions = Vec::new();
    for key in model_section().keys {
        let (name, found) = (key.name, below.remove(key.name));
        let said = match (written.get(name), &found) {
            (Some(entry), _) if name != INIT_FROM => entry,
            (None, Some(_)) => {
                written.extend(found.map(|entry| (name.to_owned(), entry)));
                continue;
            }
            _ => continue,
        };
        let (mine, theirs) = (said.node.value(), found.map(|entry| entry.node.value()));
        if theirs.as_ref().is_some_and(|theirs| same(&mine, theirs)) {
            continue;
        }
        let theirs = theirs.map_or_else(
            || "has none".to_owned(),
            |theirs| format!("gives {}", spell(&theirs)),
        );
        contradictions.push(Diagnostic {
            message: format!(
                "{} is {}, but {} {theirs}",
                key_in_words(&format!("model.{name}")),
                spell(&mine),
                source.name(),
            ),
            location: Some(said.key.location()),
            hint: Some(format!("leave it out: `{INIT_FROM}` decides it")),
        });
    }
    if contradictions.is_empty() {
        Ok(())
    } else {
        Err(ConfigError::Invalid(contradictions))
    }
}

/// Whether two values are equal; `1` and `1.0` are.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Integer(integer), Value::Float(float))
        | (Value::Float(float), Value::Integer(integer)) => {
            (*integer as f64).total_cmp(float).is_eq()
        }
        (Value::Table(one), Value::Table(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(name, value)| other.get(name).is_some_and(|other| same(value, other)))
        }
        (one, other) => one == other,
    }
}

/// A model's keys as entries of a config whose source is its `config.json`.
fn model_tree(model: &ModelConfig, source: &Arc<Source>) -> Table {
    let values = toml::Table::try_from(model).expect("a model's keys are numbers and words");
    entries(values, source, &|name| {
        let spelled = hugging_face::spellings(name);
        let found = spelled.iter().find_map(|spelled| {
            let quoted = format!("\"{spelled}\"");
            let start = source.text.find(&quoted)?;
            Some(start..start + quoted.len())
        });
        found.unwrap_or(0..0)
    })
}

type Spans<'a> = &'a dyn Fn(&str) -> std::ops::Range<usize>;

fn entries(values: toml::Table, source: &Arc<Source>, span: Spans<'_>) -> Table {
    let entry = |(name, value): (String, Value)| {
        let place = Place {
            source: Arc::clone(source),
            span: span(&name),
        };
        let node = node(value, &place, source, span);
        (name, Entry { key: place, node })
    };
    values.into_iter().map(entry).collect()
}

fn node(value: Value, place: &Place, source: &Arc<Source>, span: Spans<'_>) -> Node {
    let content = match value {
        Value::Table(table) => Content::Table(entries(table, source, span)),
        Value::Array(values) => Content::Array(
            values
                .into_iter()
                .map(|value| node(value, place, source, span))
                .collect(),
        ),
        scalar => Content::Scalar(scalar),
    };
    Node {
        place: place.clone(),
        content,
    }
}

fn unreadable(path: &Path, asked: &Place, error: io::Error) -> ConfigError {
    let diagnostic = Diagnostic {
        message: format!("cannot read `{}`: {error}", path.display()),
        location: Some(asked.location()),
        hint: Some("`init_from` names a directory with a config.json and weights".to_owned()),
    };
    ConfigError::Unreadable {
        path: path.to_owned(),
        source: error,
        diagnostic: Box::new(diagnostic),
    }
}
