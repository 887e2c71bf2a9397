//! A config as TOML text, with or without the origin of each value.
//!
//! The order is the schema's, and every value is on one line, so that a comment can follow it.

use std::fmt::Write;

use toml::{Table, Value};

use crate::{
    describe::{Section, Shape},
    names::{join, root, schema_path},
    schema::Config,
    source::Origin,
};

/// Tells what decided the value of a key.
type Origins<'a> = &'a dyn Fn(&str) -> Origin;

/// The config as TOML; with `origins`, each value is followed by where it comes from, and keys that
/// have no value are mentioned.
pub(crate) fn render(config: &Config, origins: Option<Origins<'_>>) -> String {
    let mut page = Page {
        text: String::new(),
        origins,
    };
    page.sections("", root(), &values(config));
    page.text
}

/// The config as TOML values.
pub(crate) fn values(config: &Config) -> Table {
    Table::try_from(config).expect("a loaded config holds only what TOML can express")
}

struct Page<'a> {
    text: String,
    origins: Option<Origins<'a>>,
}

impl Page<'_> {
    fn sections(&mut self, path: &str, section: &'static Section, table: &Table) {
        for key in section.keys {
            let path = join(path, key.name);
            match (key.shape, table.get(key.name)) {
                (Shape::Section(section), Some(Value::Table(table))) => {
                    self.section(&path, &format!("[{path}]"), section, table);
                }
                (Shape::Sections(section), Some(Value::Array(elements))) => {
                    let header = format!("[[{}]]", schema_path(&path));
                    for (index, element) in elements.iter().enumerate() {
                        let Value::Table(table) = element else {
                            continue;
                        };
                        self.section(&format!("{path}.{index}"), &header, section, table);
                    }
                }
                _ => {}
            }
        }
    }

    fn section(&mut self, path: &str, header: &str, section: &'static Section, table: &Table) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(header);
        let mut lines = Vec::new();
        for key in section
            .keys
            .iter()
            .filter(|key| matches!(key.shape, Shape::Leaf(_)))
        {
            let line = table.get(key.name).map_or_else(
                || format!("# {} is not set", key.name),
                |value| format!("{} = {}", key.name, spell(value)),
            );
            lines.push((key.name, line, table.contains_key(key.name)));
        }
        let width = lines
            .iter()
            .map(|(_, line, _)| line.chars().count())
            .max()
            .unwrap_or(0);
        for (name, line, is_set) in lines {
            match self.origins {
                Some(origins) if is_set => {
                    let origin = origins(&join(path, name));
                    self.line(&format!("{line:width$}  # {origin}"));
                }
                None if !is_set => {}
                _ => self.line(&line),
            }
        }
        self.sections(path, section, table);
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }
}

/// A value in one line of TOML.
pub(crate) fn spell(value: &Value) -> String {
    match value {
        Value::String(text) => spell_string(text),
        // The shortest spelling that reads back to the same bits; TOML knows exponents.
        Value::Float(number) => format!("{number:?}"),
        Value::Array(values) => {
            format!(
                "[{}]",
                values.iter().map(spell).collect::<Vec<_>>().join(", ")
            )
        }
        other => other.to_string(),
    }
}

fn spell_string(text: &str) -> String {
    let mut spelled = String::from('"');
    for c in text.chars() {
        match c {
            '"' => spelled.push_str("\\\""),
            '\\' => spelled.push_str("\\\\"),
            '\n' => spelled.push_str("\\n"),
            '\t' => spelled.push_str("\\t"),
            '\r' => spelled.push_str("\\r"),
            c if c.is_control() => {
                write!(spelled, "\\u{:04X}", u32::from(c)).expect("a string takes any text");
            }
            c => spelled.push(c),
        }
    }
    spelled.push('"');
    spelled
}
