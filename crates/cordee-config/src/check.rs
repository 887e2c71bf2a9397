//! A merged tree held against the schema: unknown and missing keys, wrong types.
//!
//! All that is wrong is collected, each error at the place that someone wrote. It must not know
//! what values mean; whether they make sense is for `validate`.

use std::{path::Path, sync::Arc};

use toml::Value;

use crate::{
    describe::{Key, Leaf, Section, Shape, Unreadable},
    diagnostic::Diagnostic,
    names::{advise, alternatives, join, key_in_words, nearest, root, section_in_words},
    source::{Place, Source, SourceKind},
    tree::{Content, Entry, Node, Table},
};

/// The values of a tree, with paths made relative to the current directory, or all its errors.
pub(crate) fn check(tree: &Table, main: &Arc<Source>) -> Result<toml::Table, Vec<Diagnostic>> {
    let mut check = Check {
        main,
        found: Vec::new(),
    };
    let values = check.section("", root(), tree, None);
    if check.found.is_empty() {
        return Ok(values);
    }
    // In the order in which they stand in the sources, so that an editor's user goes downwards.
    check.found.sort_by_key(|(place, _)| {
        place.as_ref().map_or((true, String::new(), 0), |place| {
            (!place.in_file(), place.source.name(), place.span.start)
        })
    });
    Err(check
        .found
        .into_iter()
        .map(|(_, diagnostic)| diagnostic)
        .collect())
}

struct Check<'a> {
    main: &'a Arc<Source>,
    found: Vec<(Option<Place>, Diagnostic)>,
}

impl Check<'_> {
    fn section(
        &mut self,
        path: &str,
        section: &'static Section,
        table: &Table,
        header: Option<&Place>,
    ) -> toml::Table {
        let mut values = toml::Table::new();
        let mut meant = Vec::new();
        for (name, entry) in table {
            let Some(key) = section.keys.iter().find(|key| key.name == name) else {
                meant.extend(self.unknown(path, section, name, entry));
                continue;
            };
            if let Some(value) = self.value(&join(path, name), key, &entry.node) {
                values.insert(name.clone(), value);
            }
        }
        // A key that is there under a wrong name is not missing as well.
        let missing = |key: &&Key| {
            key.required && !table.contains_key(key.name) && !meant.contains(&key.name)
        };
        let (sections, keys): (Vec<&Key>, Vec<_>) = section
            .keys
            .iter()
            .filter(missing)
            .partition(|key| matches!(key.shape, Shape::Section(_)));
        for key in sections {
            self.missing_section(&join(path, key.name), key.shape);
        }
        if !keys.is_empty() {
            self.missing_keys(path, &keys, header);
        }
        values
    }

    fn value(&mut self, path: &str, key: &'static Key, node: &Node) -> Option<Value> {
        match (key.shape, &node.content) {
            (Shape::Section(section), Content::Table(table)) => Some(Value::Table(self.section(
                path,
                section,
                table,
                Some(&node.place),
            ))),
            (Shape::Sections(section), Content::Array(nodes))
                if nodes
                    .iter()
                    .all(|node| matches!(node.content, Content::Table(_))) =>
            {
                let mut values = Vec::new();
                for (index, node) in nodes.iter().enumerate() {
                    let Content::Table(table) = &node.content else {
                        continue;
                    };
                    let path = format!("{path}.{index}");
                    values.push(Value::Table(self.section(
                        &path,
                        section,
                        table,
                        Some(&node.place),
                    )));
                }
                Some(Value::Array(values))
            }
            (Shape::Section(_), _) => {
                self.wrong_type(path, "a table", node, format!("write `[{path}]`"))
            }
            (Shape::Sections(_), _) => self.wrong_type(
                path,
                "an array of tables",
                node,
                format!("write each as `[[{path}]]`, or all as `{path} = [{{key = value}}]`"),
            ),
            (Shape::Leaf(leaf), _) => self.leaf(path, leaf, node),
        }
    }

    fn leaf(&mut self, path: &str, leaf: &'static Leaf, node: &Node) -> Option<Value> {
        let mut value = node.value();
        if let Err(unreadable) = (leaf.read)(&value) {
            let hint = reason(leaf, &value, &unreadable);
            let expects = match leaf.choices {
                [] => leaf.expects.to_owned(),
                choices => alternatives(choices.iter().map(|choice| choice.name)),
            };
            return self.wrong_type(path, &expects, node, hint);
        }
        if leaf.is_path
            && let (Value::String(text), SourceKind::File(file)) =
                (&mut value, &node.place.source.kind)
        {
            let directory = file.parent().unwrap_or(Path::new(""));
            let joined = directory.join(&*text).into_os_string().into_string();
            *text = joined.expect("the loader only takes files whose paths are UTF-8");
        }
        Some(value)
    }

    fn wrong_type(
        &mut self,
        path: &str,
        expects: &str,
        node: &Node,
        hint: impl Into<Option<String>>,
    ) -> Option<Value> {
        let key = key_in_words(path);
        let message = format!("{key} must be {expects}, found {}", in_words(&node.value()));
        self.report(Some(&node.place), message, hint.into());
        None
    }

    /// Returns the key of this section that was probably meant.
    fn unknown(
        &mut self,
        path: &str,
        section: &'static Section,
        name: &str,
        entry: &Entry,
    ) -> Option<&'static str> {
        let advice = advise(path, section, name);
        let message = match (path, &entry.node.content) {
            ("", Content::Table(_)) => format!("unknown section `[{name}]`"),
            ("", _) => format!("unknown key `{name}` at the top of the config"),
            _ => format!("unknown key `{name}` in {}", section_in_words(path)),
        };
        self.report(Some(&entry.key), message, Some(advice.hint));
        advice.meant
    }

    fn missing_section(&mut self, path: &str, shape: Shape) {
        let hint = match shape {
            Shape::Section(section) => {
                let required = section.keys.iter().filter(|key| key.required);
                let names: Vec<_> = required.map(|key| format!("`{}`", key.name)).collect();
                Some(format!("it needs {}", names.join(", ")))
            }
            Shape::Sections(_) | Shape::Leaf(_) => None,
        };
        self.report(
            None,
            format!("missing section {}", section_in_words(path)),
            hint,
        );
    }

    fn missing_keys(&mut self, path: &str, keys: &[&Key], header: Option<&Place>) {
        let names: Vec<_> = keys.iter().map(|key| format!("`{}`", key.name)).collect();
        let noun = if keys.len() == 1 { "key" } else { "keys" };
        let section = section_in_words(path);
        self.report(
            header,
            format!("missing {noun} {} in {section}", names.join(", ")),
            None,
        );
    }

    /// Notes an error; one without a place is about the main file as a whole.
    fn report(&mut self, place: Option<&Place>, message: String, hint: Option<String>) {
        let location = place.map_or_else(|| self.main.whole(), Place::location);
        let diagnostic = Diagnostic {
            message,
            location: Some(location),
            hint,
        };
        self.found.push((place.cloned(), diagnostic));
    }
}

/// What would help with a value that is not of its type.
fn reason(leaf: &Leaf, value: &Value, unreadable: &Unreadable) -> Option<String> {
    if let Some(error) = &unreadable.because {
        return Some(error.to_string());
    }
    let text = value.as_str()?;
    if !leaf.choices.is_empty() {
        let near = nearest(
            &text.to_lowercase(),
            leaf.choices.iter().map(|choice| choice.name),
        );
        return near.map(|near| format!("did you mean `{near}`?"));
    }
    let unquoted = format!("x = {text}").parse::<toml::Table>().ok()?;
    let fits = (leaf.read)(unquoted.get("x")?).is_ok();
    fits.then(|| format!("write it without quotes: {text}"))
}

/// A value as a message names it.
fn in_words(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the string {text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(boolean) => boolean.to_string(),
        Value::Datetime(datetime) => format!("the date {datetime}"),
        Value::Array(values) => match values.len() {
            1 => "an array of 1 value".to_owned(),
            length => format!("an array of {length} values"),
        },
        Value::Table(_) => "a table".to_owned(),
    }
}
