//! Text and corpora for tests.

use std::path::{Path, PathBuf};

use cordee_data::{Corpus, DataError, Format, PrepareSpec, SourceSpec, Stage, Vocabulary, prepare};
use tempfile::TempDir;

/// A directory with sources in it and a cache beside them.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Writes a file of text and describes it as a source with blank lines between documents.
    pub(crate) fn source(&self, name: &str, text: impl AsRef<[u8]>) -> SourceSpec {
        let path = self.dir.path().join(format!("{name}.txt"));
        std::fs::write(&path, text).unwrap();
        SourceSpec {
            name: name.to_owned(),
            path,
            format: Format::Text {
                separator: Some("\n\n".to_owned()),
            },
        }
    }

    /// Prepares and says what happened on the way.
    pub(crate) fn prepare(&self, spec: &PrepareSpec) -> (Result<Corpus, DataError>, Vec<Stage>) {
        let mut stages = Vec::new();
        let corpus = prepare(spec, &self.cache(), &mut |stage| stages.push(stage));
        (corpus, stages)
    }

    pub(crate) fn corpus(&self, spec: &PrepareSpec) -> Corpus {
        self.prepare(spec).0.unwrap()
    }
}

pub(crate) fn spec(sources: Vec<SourceSpec>) -> PrepareSpec {
    PrepareSpec {
        sources,
        vocabulary: Vocabulary::Train(400),
        validation_fraction: 0.1,
        seq_len: 32,
        verify: false,
    }
}

/// Documents that differ, so that one taken for another is noticed.
pub(crate) fn text(word: &str, documents: usize) -> String {
    let documents: Vec<String> = (0..documents)
        .map(|n| {
            format!(
                "{word} number {n} is the {}th of them.\nIt ends h\u{e9}r\u{e9}.",
                n * n
            )
        })
        .collect();
    documents.join("\n\n") + "\n"
}

pub(crate) fn did_tokenize(stages: &[Stage]) -> bool {
    stages
        .iter()
        .any(|stage| matches!(stage, Stage::Tokenizing { .. }))
}

/// The files of a directory with their contents, in order of their names.
pub(crate) fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}
