//! TOML as a tree whose nodes know where they come from, and the merging of such trees.
//!
//! It must not know the schema: any TOML document can be read and merged.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use toml::{
    Spanned, Value,
    de::{DeTable, DeValue},
};

use crate::{
    diagnostic::{ConfigError, Diagnostic},
    source::{Place, Source},
};

/// The entries of a table.
pub(crate) type Table = BTreeMap<String, Entry>;

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Where the key stands.
    pub(crate) key: Place,
    pub(crate) node: Node,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Where it stands; for a table that is its header.
    pub(crate) place: Place,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Table(Table),
    Array(Vec<Node>),
    /// Neither table nor array.
    Scalar(Value),
}

/// Reads a document.
pub(crate) fn parse(source: &Arc<Source>) -> Result<Table, ConfigError> {
    let document = DeTable::parse(&source.text).map_err(|error| {
        let end = source.text.len();
        syntax_error(source, error.message(), error.span().unwrap_or(end..end))
    })?;
    table(source, document.get_ref())
}

/// Lays `over` onto `base`: tables merge key by key, anything else replaces what was there.
pub(crate) fn merge(base: &mut Table, over: Table) {
    for (name, entry) in over {
        match (base.get_mut(&name), entry) {
            (
                Some(Entry {
                    key,
                    node:
                        Node {
                            place,
                            content: Content::Table(below),
                        },
                }),
                Entry {
                    key: over_key,
                    node:
                        Node {
                            place: over_place,
                            content: Content::Table(above),
                        },
                },
            ) => {
                // What is missing from a section is reported at its header, and a header in the
                // last file says more than a mention on the command line.
                if over_place.in_file() {
                    (*key, *place) = (over_key, over_place);
                }
                merge(below, above);
            }
            (_, entry) => {
                base.insert(name, entry);
            }
        }
    }
}

/// The node at a dotted path, in which a number is an index into an array, and the place of its key.
pub(crate) fn find<'a>(table: &'a Table, path: &str) -> Option<(&'a Place, &'a Node)> {
    let mut names = path.split('.');
    let first = table.get(names.next()?)?;
    names.try_fold((&first.key, &first.node), |(_, node), name| {
        match &node.content {
            Content::Table(table) => table.get(name).map(|entry| (&entry.key, &entry.node)),
            Content::Array(nodes) => nodes
                .get(name.parse::<usize>().ok()?)
                .map(|node| (&node.place, node)),
            Content::Scalar(_) => None,
        }
    })
}

impl Node {
    /// The value without its places.
    pub(crate) fn value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::Array(nodes) => Value::Array(nodes.iter().map(Self::value).collect()),
            Content::Table(table) => {
                let entry = |(name, entry): (&String, &Entry)| (name.clone(), entry.node.value());
                Value::Table(table.iter().map(entry).collect())
            }
        }
    }
}

/// The error for text that is not TOML.
pub(crate) fn syntax_error(source: &Arc<Source>, message: &str, span: Range<usize>) -> ConfigError {
    let place = Place {
        source: Arc::clone(source),
        span,
    };
    ConfigError::Syntax(Box::new(Diagnostic {
        message: format!("invalid TOML: {message}"),
        location: Some(place.location()),
        hint: None,
    }))
}

fn table(source: &Arc<Source>, document: &DeTable<'_>) -> Result<Table, ConfigError> {
    let place = |span| Place {
        source: Arc::clone(source),
        span,
    };
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        Ok((
            name.to_string(),
            Entry {
                key: place(key.span()),
                node: node(source, value)?,
            },
        ))
    };
    document.iter().map(entry).collect()
}

fn node(source: &Arc<Source>, value: &Spanned<DeValue<'_>>) -> Result<Node, ConfigError> {
    let content = match value.get_ref() {
        DeValue::Table(document) => Content::Table(table(source, document)?),
        DeValue::Array(values) => Content::Array(
            values
                .iter()
                .map(|value| node(source, value))
                .collect::<Result<_, _>>()?,
        ),
        DeValue::String(text) => Content::Scalar(Value::String(text.to_string())),
        DeValue::Boolean(boolean) => Content::Scalar(Value::Boolean(*boolean)),
        DeValue::Datetime(datetime) => Content::Scalar(Value::Datetime(*datetime)),
        DeValue::Integer(integer) => {
            let number = i64::from_str_radix(integer.as_str(), integer.radix());
            Content::Scalar(Value::Integer(number.map_err(|_| {
                syntax_error(source, "the integer does not fit in 64 bits", value.span())
            })?))
        }
        DeValue::Float(float) => {
            let number = float.as_str().parse();
            Content::Scalar(Value::Float(number.map_err(|_| {
                syntax_error(source, "the number cannot be read", value.span())
            })?))
        }
    };
    Ok(Node {
        place: Place {
            source: Arc::clone(source),
            span: value.span(),
        },
        content,
    })
}
