//! The reference page of the config, from the schema's own documentation.

use std::fmt::Write;

use toml::Value;

use crate::{
    describe::{Key, Leaf, Section, Shape, paragraph},
    names::{join, root},
    render::{spell, values},
    schema::Config,
};

const INTRODUCTION: &str = "\
# Config reference

A run is described by a TOML file. Each key has the value that the last of these gives it: its
default, the file that is extended, the file itself, `--set` arguments from left to right.

- `extends = \"base/small.toml\"` at the top of a file starts from another file, relative to the one
  it stands in. Tables are merged key by key; anything else, arrays included, is replaced.
- `--set optimizer.lr=1e-3` changes one key. The value is TOML (`--set parallel={workers=4}`); a bare
  word that is not is taken as a string (`--set data.tokenizer=tok.json`).
- A path is relative to the file that gives it; in a `--set`, to the current directory.
- An unknown key is an error.

| Type | Written as |
| --- | --- |
| integer | `512`, `2_000`: not negative |
| number | `3e-4`, `1`: finite |
| count | `2000`, or with k (a thousand), M (a million) or G (10⁹): `\"512k\"`, `\"1.5M\"` |
| size | `4096` bytes, or with a unit: `\"16MiB\"`, `\"2GiB\"` (powers of 1024), `\"1MB\"` (of 1000) |
| time span | `90` seconds, or with units: `\"90s\"`, `\"1h30m\"`, `\"250ms\"` |
| path | a string: `\"../data/books.txt\"` |
";

/// A Markdown page with every section and key: type, default, meaning.
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    let defaults = Value::Table(values(&example()));
    write_sections(&mut page, "", root(), Some(&defaults));
    page
}

/// `defaults` is absent below a section that need not be there.
fn write_sections(
    page: &mut String,
    path: &str,
    section: &'static Section,
    defaults: Option<&Value>,
) {
    for key in section.keys {
        let path = join(path, key.name);
        let default = defaults.and_then(|defaults| defaults.get(key.name));
        let (header, section, default) = match key.shape {
            Shape::Section(section) => (format!("[{path}]"), section, default),
            Shape::Sections(section) => (
                format!("[[{path}]]"),
                section,
                default.and_then(|default| default.get(0)),
            ),
            Shape::Leaf(_) => continue,
        };
        // The doc comment begins with the header, for those who read the source.
        let doc = paragraph(section.doc);
        let doc = doc.trim_start_matches(&format!("`{header}`: "));
        let mut letters = doc.chars();
        let first = letters
            .next()
            .map_or(String::new(), |letter| letter.to_uppercase().to_string());
        write!(page, "\n## `{header}`\n\n{first}{}\n\n", letters.as_str()).expect(ANY_TEXT);
        page.push_str("| Key | Type | Default | Meaning |\n| --- | --- | --- | --- |\n");
        for key in section.keys {
            if let Shape::Leaf(leaf) = key.shape {
                let default = default.and_then(|default| default.get(key.name));
                write_key(page, key, leaf, default);
            }
        }
        write_sections(page, &path, section, default);
    }
}

fn write_key(page: &mut String, key: &Key, leaf: &Leaf, default: Option<&Value>) {
    let default = match default {
        _ if key.required => "required".to_owned(),
        Some(value) => format!("`{}`", spell(value)),
        None => "none".to_owned(),
    };
    let mut meaning = paragraph(key.doc);
    for choice in leaf.choices {
        let doc = paragraph(choice.doc);
        write!(meaning, "<br>`\"{}\"`: {doc}", choice.name).expect(ANY_TEXT);
    }
    let (name, kind) = (key.name, leaf.name);
    writeln!(page, "| `{name}` | {kind} | {default} | {meaning} |").expect(ANY_TEXT);
}

const ANY_TEXT: &str = "a string takes any text";

/// The smallest config, to read the defaults from.
fn example() -> Config {
    toml::from_str(EXAMPLE).expect("the example has every required key")
}

pub(crate) const EXAMPLE: &str = "\
[model]
dim = 64
layers = 2
heads = 4
ffn = 128

[data]
seq_len = 32

[[data.sources]]
name = \"books\"
path = \"books.txt\"

[train]
steps = 10
global_batch_size = 8
micro_batch_size = 2
";
