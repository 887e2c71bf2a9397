//! Tests of the whole crate: from files and arguments to configs and errors.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::{ConfigError, Loaded, Machine, load, reference::EXAMPLE};

/// Compares with a stored snapshot, in which only the text itself stands.
macro_rules! assert_text {
    ($($snapshot:tt)*) => {
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!($($snapshot)*);
        })
    };
}

mod errors;
mod init_from;
mod layers;
mod merging;
mod resolved;
mod schema;
mod values;

/// A directory with config files, whose own path never shows.
struct Directory(TempDir);

impl Directory {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = Self(TempDir::new().unwrap());
        for (name, text) in files {
            let path = directory.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, name: &str, sets: &[&str]) -> Result<Loaded, ConfigError> {
        load(
            &self.path(name),
            &sets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    }

    /// `text` as it would be if this were the current directory.
    fn relative(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// Loads a config of one file.
fn load_text(text: &str, sets: &[&str]) -> Result<Loaded, ConfigError> {
    Directory::new(&[("run.toml", text)]).load("run.toml", sets)
}

/// Loads the smallest config, as if from the current directory, with changes.
fn example(sets: &[&str]) -> Loaded {
    let directory = Directory::new(&[("run.toml", EXAMPLE)]);
    let mut loaded = directory.load("run.toml", sets).unwrap();
    for source in &mut loaded.config.data.sources {
        source.path = directory.relative(source.path.to_str().unwrap()).into();
    }
    loaded
}

/// The smallest config with one line replaced.
fn example_with(line: &str, replacement: &str) -> String {
    assert!(EXAMPLE.contains(line), "{line}");
    EXAMPLE.replacen(line, replacement, 1)
}

/// The rendering of the error that each config gives, one after the other.
fn errors(cases: &[(&str, &[&str])]) -> String {
    let render = |(text, sets): &(&str, &[&str])| {
        let directory = Directory::new(&[("configs/run.toml", text)]);
        let error = directory
            .load("configs/run.toml", sets)
            .and_then(|loaded| loaded.plan(Machine::cpu(2)))
            .expect_err(text);
        directory.relative(&format!("error: {error}\n"))
    };
    cases.iter().map(render).collect::<Vec<_>>().join("\n")
}
