//! `--set key=value` arguments.
//!
//! The value is TOML; a bare word that is none, such as a path, is taken as a string, because the
//! shell has eaten the quotes. It must not know the schema.

use std::{ops::Range, sync::Arc};

use toml::Value;

use crate::{
    diagnostic::{ConfigError, Diagnostic},
    source::{Place, Source, SourceKind},
    tree::{Content, Node, Table, parse},
};

/// Reads one argument.
pub(crate) fn parse_set(argument: &str) -> Result<Table, ConfigError> {
    let source = Arc::new(Source {
        kind: SourceKind::Set,
        text: argument.to_owned(),
    });
    let Some(equals) = equals_sign(argument) else {
        let place = Place {
            source,
            span: 0..argument.len(),
        };
        return Err(ConfigError::Syntax(Box::new(Diagnostic {
            message: format!("`--set {argument}` gives no value"),
            location: Some(place.location()),
            hint: Some("write it as `--set section.key=value`".to_owned()),
        })));
    };
    let written = &argument[equals + 1..];
    let value = written.trim();
    let looks_like_toml = value.starts_with(['"', '\'', '[', '{']);
    let error = match parse(&source) {
        Ok(table) => return Ok(table),
        Err(error) if looks_like_toml => return Err(error),
        Err(error) => error,
    };
    // The key alone, with a value that cannot be wrong. Whatever precedes the value keeps its place.
    let stand_in = Source {
        text: format!("{}=0", &argument[..equals]),
        ..(*source).clone()
    };
    let Ok(mut table) = parse(&Arc::new(stand_in)) else {
        return Err(error);
    };
    let start = equals + 1 + (written.len() - written.trim_start().len());
    fill_in(&mut table, &source, value, &(start..start + value.len()));
    Ok(table)
}

/// Puts `value` where the one scalar is, and the places into the true source.
fn fill_in(table: &mut Table, source: &Arc<Source>, value: &str, span: &Range<usize>) {
    for entry in table.values_mut() {
        entry.key.source = Arc::clone(source);
        entry.node.place.source = Arc::clone(source);
        match &mut entry.node.content {
            Content::Table(table) => fill_in(table, source, value, span),
            Content::Array(_) | Content::Scalar(_) => {
                entry.node = Node {
                    place: Place {
                        source: Arc::clone(source),
                        span: span.clone(),
                    },
                    content: Content::Scalar(Value::String(value.to_owned())),
                };
            }
        }
    }
}

/// Where the key ends: the first `=` that is not inside quotes.
fn equals_sign(argument: &str) -> Option<usize> {
    let mut quote = None;
    for (position, c) in argument.char_indices() {
        match (quote, c) {
            (None, '=') => return Some(position),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
    }
    None
}
