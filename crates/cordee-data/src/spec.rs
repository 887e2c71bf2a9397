//! What a corpus is made from, and the key that says whether two are the same.

use std::path::PathBuf;

use cordee_config::DataConfig;
use sha2::{Digest, Sha256};

use crate::DataError;
use crate::text::{ContentHash, TextSource};

/// Changes whenever the same text and settings would give other shards or another manifest: old
/// cache entries are then left alone. An update of the tokenizers crate that alters ids counts.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// Ids that a trained vocabulary holds before its first merge: 256 bytes and the end of text.
pub(crate) const LEAST_VOCABULARY: usize = 257;

/// What a corpus is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct PrepareSpec {
    /// Bodies of text, in the order that all indices of sources refer to.
    pub sources: Vec<SourceSpec>,
    /// Where the vocabulary comes from.
    pub vocabulary: Vocabulary,
    /// Share of each source's bytes, from its end, that is held out; 0 holds out nothing.
    pub validation_fraction: f64,
    /// Whether a cached corpus is read in full and compared with its checksums before it is used;
    /// its files' sizes are compared in any case.
    pub verify: bool,
}

/// One body of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// Name in metrics.
    pub name: String,
    /// A UTF-8 file, or a directory whose `.txt` files are read in order of their names.
    pub path: PathBuf,
    /// Text between documents; each file is one document when absent.
    pub document_separator: Option<String>,
}

/// Where a vocabulary comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// A `tokenizer.json`.
    File(PathBuf),
    /// A byte-level BPE vocabulary, trained on the training split, of at most this many ids; fewer
    /// where the text holds no further pair twice.
    Train(usize),
}

impl From<&DataConfig> for PrepareSpec {
    fn from(config: &DataConfig) -> Self {
        Self {
            sources: config
                .sources
                .iter()
                .map(|source| SourceSpec {
                    name: source.name.clone(),
                    path: source.path.clone(),
                    document_separator: source.document_separator.clone(),
                })
                .collect(),
            vocabulary: match &config.tokenizer {
                Some(path) => Vocabulary::File(path.clone()),
                None => Vocabulary::Train(config.vocab_size),
            },
            validation_fraction: config.validation_fraction,
            verify: false,
        }
    }
}

impl PrepareSpec {
    /// What can be said before any file is touched.
    pub(crate) fn check(&self) -> Result<(), DataError> {
        if self.sources.is_empty() {
            return Err(DataError::NoSources);
        }
        for source in &self.sources {
            if source.document_separator.as_deref() == Some("") {
                return Err(DataError::EmptySeparator {
                    name: source.name.clone(),
                });
            }
        }
        if !(0.0..1.0).contains(&self.validation_fraction) {
            return Err(DataError::ValidationFraction(self.validation_fraction));
        }
        match self.vocabulary {
            Vocabulary::Train(asked) if asked < LEAST_VOCABULARY => {
                Err(DataError::VocabularyTooSmall {
                    asked,
                    least: LEAST_VOCABULARY,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Hash of a source's content: its files in order, each apart from the next.
pub(crate) fn source_hash(source: &TextSource) -> ContentHash {
    let mut hash = Sha256::new();
    for file in &source.files {
        hash.update(file.sha256);
    }
    hash.finalize().into()
}

/// The fingerprint of a corpus, in hex: equal exactly if text, separators, split, vocabulary and
/// format are.
///
/// Paths and times are no part of it. Fields of variable length go in with their length, so that no
/// two specs run together.
pub(crate) fn fingerprint(
    sources: &[TextSource],
    tokenizer: Option<&ContentHash>,
    spec: &PrepareSpec,
) -> String {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(&FORMAT_VERSION.to_le_bytes());
    field(&(sources.len() as u64).to_le_bytes());
    for source in sources {
        field(source.name.as_bytes());
        field(&source_hash(source));
        match &source.separator {
            Some(separator) => field(separator.as_bytes()),
            None => field(&[]),
        }
    }
    field(&spec.validation_fraction.to_le_bytes());
    match (&spec.vocabulary, tokenizer) {
        (_, Some(sha256)) => field(sha256),
        (Vocabulary::Train(size), None) => field(&(*size as u64).to_le_bytes()),
        (Vocabulary::File(_), None) => unreachable!("the caller hashes a tokenizer that is given"),
    }
    hex(&hash.finalize())
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> PrepareSpec {
        PrepareSpec {
            sources: vec![SourceSpec {
                name: "a".to_owned(),
                path: PathBuf::from("a.txt"),
                document_separator: None,
            }],
            vocabulary: Vocabulary::Train(300),
            validation_fraction: 0.1,
            verify: false,
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(spec().check().is_ok());
        let refused: [fn(&mut PrepareSpec); 5] = [
            |spec| spec.sources.clear(),
            |spec| spec.sources[0].document_separator = Some(String::new()),
            |spec| spec.validation_fraction = 1.0,
            |spec| spec.validation_fraction = f64::NAN,
            |spec| spec.vocabulary = Vocabulary::Train(256),
        ];
        for (index, change) in refused.into_iter().enumerate() {
            let mut changed = spec();
            change(&mut changed);
            assert!(changed.check().is_err(), "case {index}");
        }
    }

    #[test]
    fn every_setting_is_in_the_fingerprint() {
        let source = |name: &str, separator: Option<&str>, contents: &[u8]| TextSource {
            name: name.to_owned(),
            separator: separator.map(str::to_owned),
            files: contents
                .iter()
                .map(|&byte| crate::text::HashedFile {
                    path: PathBuf::from("x"),
                    bytes: 1,
                    sha256: [byte; 32],
                })
                .collect(),
        };
        let other_size = PrepareSpec {
            vocabulary: Vocabulary::Train(301),
            ..spec()
        };
        let other_share = PrepareSpec {
            validation_fraction: 0.2,
            ..spec()
        };
        let plain = [source("a", None, &[1, 2])];
        let fingerprints = [
            fingerprint(&plain, None, &spec()),
            fingerprint(&plain, None, &other_size),
            fingerprint(&plain, None, &other_share),
            fingerprint(&plain, Some(&[7; 32]), &spec()),
            fingerprint(&plain, Some(&[8; 32]), &spec()),
            fingerprint(&[source("b", None, &[1, 2])], None, &spec()),
            fingerprint(&[source("a", Some("\n"), &[1, 2])], None, &spec()),
            fingerprint(&[source("a", None, &[2, 1])], None, &spec()),
            fingerprint(
                &[source("a", None, &[1]), source("a", None, &[2])],
                None,
                &spec(),
            ),
        ];
        let distinct: std::collections::HashSet<_> = fingerprints.iter().collect();
        assert_eq!(distinct.len(), fingerprints.len());
        assert_eq!(
            fingerprints[0],
            fingerprint(
                &plain,
                None,
                &PrepareSpec {
                    verify: true,
                    ..spec()
                }
            )
        );
    }
}
