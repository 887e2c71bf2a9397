//! What a corpus is made from, and the key that says whether two are the same.

use std::path::PathBuf;

use cordee_config::{Config, SourceConfig, SourceFormat, TooLong};
use sha2::{Digest, Sha256};

use crate::companions::{Companions, NamedToken};
use crate::manifest::TOKENIZER;
use crate::text::{ContentHash, SourceFiles};
use crate::{DataError, ExampleKeys};

/// Changes whenever the same text and settings would give other shards or another manifest: old
/// cache entries are then left alone. An update of the tokenizers crate that alters ids counts.
pub(crate) const FORMAT_VERSION: u32 = 2;

/// Ids that a trained vocabulary holds before its first merge: 256 bytes and the end of text.
pub(crate) const LEAST_VOCABULARY: usize = 257;

/// What a corpus is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct PrepareSpec {
    /// Bodies of text, in the order that all indices of sources refer to.
    pub sources: Vec<SourceSpec>,
    /// Where the vocabulary comes from.
    pub vocabulary: Vocabulary,
    /// Share that is held out: of a text its bytes, from its end; of examples their number, those
    /// with the smallest hashes of prompts. 0 holds out nothing.
    pub validation_fraction: f64,
    /// Targets of the sequences that examples are packed into; of no effect on text.
    pub seq_len: usize,
    /// Whether a cached corpus is read in full and compared with its checksums before it is used;
    /// its files' sizes are compared in any case.
    pub verify: bool,
}

/// One body of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// Name in metrics.
    pub name: String,
    /// A UTF-8 file, or a directory whose `.txt` or `.jsonl` files are read in order of their names.
    pub path: PathBuf,
    /// What stands in it.
    pub format: Format,
}

/// What stands in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// Running text, all of which is learned.
    Text {
        /// What stands between documents; each file is one document when absent.
        separator: Option<String>,
    },
    /// An example a line, as JSON.
    Examples {
        /// Under which keys they stand.
        keys: ExampleKeys,
        /// What becomes of those that are longer than a sequence.
        too_long: TooLong,
    },
}

impl From<&SourceConfig> for Format {
    fn from(config: &SourceConfig) -> Self {
        match config.format {
            SourceFormat::Text => Self::Text {
                separator: config.document_separator.clone(),
            },
            SourceFormat::Jsonl => Self::Examples {
                keys: ExampleKeys {
                    prompt: config.prompt_key.clone(),
                    completion: config.completion_key.clone(),
                    messages: config.messages_key.clone(),
                },
                too_long: config.too_long.unwrap_or_default(),
            },
        }
    }
}

/// Where a vocabulary comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// A `tokenizer.json`, or the directory that holds one.
    File(PathBuf),
    /// A byte-level BPE vocabulary, trained on the training split, of at most this many ids; fewer
    /// where the text holds no further pair twice.
    Train(usize),
}

impl From<&Config> for PrepareSpec {
    fn from(config: &Config) -> Self {
        // A model that is gone on with has its own vocabulary.
        let init_from = config.model.init_from.as_ref();
        let tokenizer_of_model = init_from.filter(|dir| dir.join(TOKENIZER).exists());
        let data = &config.data;
        Self {
            sources: data
                .sources
                .iter()
                .map(|source| SourceSpec {
                    name: source.name.clone(),
                    path: source.path.clone(),
                    format: Format::from(source),
                })
                .collect(),
            vocabulary: match data.tokenizer.as_ref().or(tokenizer_of_model) {
                Some(path) => Vocabulary::File(path.clone()),
                None => Vocabulary::Train(data.vocab_size),
            },
            validation_fraction: data.validation_fraction,
            seq_len: data.seq_len,
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
            match &source.format {
                Format::Text { separator } if separator.as_deref() == Some("") => {
                    return Err(DataError::EmptySeparator {
                        name: source.name.clone(),
                    });
                }
                Format::Examples { .. } if self.seq_len == 0 => return Err(DataError::ZeroSeqLen),
                Format::Text { .. } | Format::Examples { .. } => {}
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
pub(crate) fn source_hash(source: &SourceFiles) -> ContentHash {
    let mut hash = Sha256::new();
    for file in &source.files {
        hash.update(file.sha256);
    }
    hash.finalize().into()
}

/// The fingerprint of a corpus, in hex: equal exactly if data, formats, split, vocabulary and, where
/// there are examples, the length of sequences are.
///
/// Paths and times are no part of it. Fields of variable length go in with their length, so that no
/// two specs run together.
pub(crate) fn fingerprint(
    sources: &[SourceFiles],
    tokenizer: Option<(&ContentHash, &Companions)>,
    spec: &PrepareSpec,
) -> String {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    let optional =
        |text: Option<&str>| text.map_or_else(|| b"-".to_vec(), |text| format!("+{text}").into());
    field(&FORMAT_VERSION.to_le_bytes());
    field(&(sources.len() as u64).to_le_bytes());
    for source in sources {
        field(source.name.as_bytes());
        field(&source_hash(source));
        match &source.format {
            Format::Text { separator } => {
                field(b"text");
                field(&optional(separator.as_deref()));
            }
            Format::Examples { keys, too_long } => {
                field(b"examples");
                for key in [&keys.prompt, &keys.completion, &keys.messages] {
                    field(&optional(key.as_deref()));
                }
                field(match too_long {
                    TooLong::Skip => b"skip",
                    TooLong::Truncate => b"truncate",
                    TooLong::Error => b"error",
                });
                field(&(spec.seq_len as u64).to_le_bytes());
            }
        }
    }
    field(&spec.validation_fraction.to_le_bytes());
    match (&spec.vocabulary, tokenizer) {
        (_, Some((sha256, companions))) => {
            field(sha256);
            let end_of_text = companions.end_of_text.as_ref().map(|(token, _)| token);
            for token in [end_of_text, companions.begin_of_text.as_ref()] {
                match token {
                    Some(NamedToken::Id(id)) => field(&id.to_le_bytes()),
                    Some(NamedToken::Text(text)) => field(&optional(Some(text))),
                    None => field(&optional(None)),
                }
            }
            field(&optional(companions.chat_template.as_deref()));
        }
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
                format: Format::Text { separator: None },
            }],
            vocabulary: Vocabulary::Train(300),
            validation_fraction: 0.1,
            seq_len: 16,
            verify: false,
        }
    }

    fn examples(too_long: TooLong) -> Format {
        Format::Examples {
            keys: ExampleKeys::default(),
            too_long,
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(spec().check().is_ok());
        let refused: [fn(&mut PrepareSpec); 6] = [
            |spec| spec.sources.clear(),
            |spec| {
                spec.sources[0].format = Format::Text {
                    separator: Some(String::new()),
                };
            },
            |spec| {
                spec.sources[0].format = examples(TooLong::Skip);
                spec.seq_len = 0;
            },
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

    fn files(name: &str, format: Format, contents: &[u8]) -> SourceFiles {
        SourceFiles {
            name: name.to_owned(),
            format,
            files: contents
                .iter()
                .map(|&byte| crate::text::HashedFile {
                    path: PathBuf::from("x"),
                    bytes: 1,
                    sha256: [byte; 32],
                })
                .collect(),
        }
    }

    fn text(name: &str, separator: Option<&str>, contents: &[u8]) -> SourceFiles {
        let separator = separator.map(str::to_owned);
        files(name, Format::Text { separator }, contents)
    }

    fn all_differ(fingerprints: &[String]) {
        let distinct: std::collections::HashSet<_> = fingerprints.iter().collect();
        assert_eq!(distinct.len(), fingerprints.len());
    }

    #[test]
    fn every_setting_is_in_the_fingerprint() {
        let changed = |change: fn(&mut PrepareSpec)| {
            let mut spec = spec();
            change(&mut spec);
            fingerprint(&[text("a", None, &[1, 2])], None, &spec)
        };
        let of = |sources: &[SourceFiles]| fingerprint(sources, None, &spec());
        let plain = changed(|_| {});
        assert_eq!(changed(|spec| spec.verify = true), plain);
        assert_eq!(changed(|spec| spec.seq_len = 17), plain);
        all_differ(&[
            plain,
            changed(|spec| spec.vocabulary = Vocabulary::Train(301)),
            changed(|spec| spec.validation_fraction = 0.2),
            of(&[text("b", None, &[1, 2])]),
            of(&[text("a", Some("\n"), &[1, 2])]),
            of(&[text("a", None, &[2, 1])]),
            of(&[text("a", None, &[1]), text("a", None, &[2])]),
        ]);
    }

    #[test]
    fn every_setting_of_examples_is_in_the_fingerprint() {
        let renamed = |change: fn(&mut ExampleKeys)| {
            let mut keys = ExampleKeys::default();
            change(&mut keys);
            let too_long = TooLong::Skip;
            let format = Format::Examples { keys, too_long };
            fingerprint(&[files("a", format, &[1, 2])], None, &spec())
        };
        let of = |format: Format, seq_len| {
            let spec = PrepareSpec { seq_len, ..spec() };
            fingerprint(&[files("a", format, &[1, 2])], None, &spec)
        };
        all_differ(&[
            fingerprint(&[text("a", None, &[1, 2])], None, &spec()),
            of(examples(TooLong::Skip), 16),
            of(examples(TooLong::Skip), 17),
            of(examples(TooLong::Error), 16),
            of(examples(TooLong::Truncate), 16),
            renamed(|keys| keys.prompt = Some("k".to_owned())),
            renamed(|keys| keys.completion = Some("k".to_owned())),
            renamed(|keys| keys.messages = Some("k".to_owned())),
        ]);
    }

    #[test]
    fn what_is_known_of_a_tokenizer_is_in_the_fingerprint() {
        let with = |hash: u8, change: fn(&mut Companions)| {
            let mut companions = Companions::default();
            change(&mut companions);
            let tokenizer = Some((&[hash; 32], &companions));
            fingerprint(&[text("a", None, &[1, 2])], tokenizer, &spec())
        };
        all_differ(&[
            with(7, |_| {}),
            with(8, |_| {}),
            with(7, |it| {
                it.end_of_text = Some((NamedToken::Id(2), PathBuf::from("x")));
            }),
            with(7, |it| it.begin_of_text = Some(NamedToken::Id(2))),
            with(7, |it| {
                it.begin_of_text = Some(NamedToken::Text("<s>".to_owned()));
            }),
            with(7, |it| it.chat_template = Some("t".to_owned())),
        ]);
    }
}
