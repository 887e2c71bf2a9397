//! The manifest of a prepared corpus: what it holds, and the size and checksum of every file beside
//! it.
//!
//! It carries a checksum of itself, taken over its own bytes with the checksum's digits at zero.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::DataError;
use crate::spec::FORMAT_VERSION;

/// Its name in the entry's directory.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The tokenizer's name in the entry's directory.
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// The name of what is known of the tokenizer beside its file.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

const NO_CHECKSUM: &str = "0000000000000000";
const CHECKSUM_KEY: &str = "\"xxh3\": \"";

/// All of `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// XXH3-64 of this file; first, so that it is found without parsing.
    pub(crate) xxh3: String,
    pub(crate) format_version: u32,
    pub(crate) fingerprint: String,
    pub(crate) tokenizer_sha256: String,
    pub(crate) vocab_size: usize,
    pub(crate) end_of_text: u32,
    pub(crate) sources: Vec<Source>,
    /// Every other file of the entry by name.
    pub(crate) files: BTreeMap<String, FileEntry>,
}

/// One source of a prepared corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Its name in metrics.
    pub name: String,
    /// SHA-256 over the SHA-256 of each of its files, in hex.
    pub sha256: String,
    /// What is trained on.
    pub train: Split,
    /// What is held out; has no tokens if nothing is.
    pub validation: Split,
}

/// The training or the held-out part of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Tokens, with those that begin and end documents; without padding.
    pub tokens: u64,
    /// Bytes of UTF-8 text that they stand for; end-of-text tokens stand for none.
    pub bytes: u64,
    /// Documents, or examples; a document that was cut for validation counts on both sides.
    pub documents: u64,
    /// Bytes of text that the very first token stands for.
    pub first_token_bytes: u64,
    /// Entropy of the tokens' own frequencies, in bits per token: the loss of the best model that
    /// ignores context.
    pub unigram_bits: f64,
    /// How examples fill sequences; `None` for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<Packed>,
    pub(crate) shards: Vec<ShardEntry>,
    pub(crate) document_ends: String,
}

/// Examples that share sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Targets of a sequence.
    pub seq_len: usize,
    /// Sequences.
    pub rows: u64,
    /// Targets that are learned, over all sequences.
    pub learned: u64,
    /// Examples that are longer than a sequence and left out.
    pub left_out: u64,
    /// Examples that are longer than a sequence and lost their end.
    pub truncated: u64,
    /// Examples that spell a special token, which is plain text to them.
    pub spell_special: u64,
    pub(crate) marks: String,
}

impl Source {
    /// That a split can be read in sequences of `seq_len` targets.
    pub(crate) fn check_packing(&self, split: &Split, seq_len: usize) -> Result<(), DataError> {
        match &split.packed {
            Some(packed) if packed.seq_len != seq_len => Err(DataError::PackedOtherwise {
                name: self.name.clone(),
                packed: packed.seq_len,
                seq_len,
            }),
            _ => Ok(()),
        }
    }
}

impl Split {
    /// Sequences of `seq_len` targets that it holds: of text windows that do not overlap, of examples
    /// rows, which were packed for one `seq_len`.
    pub fn sequences(&self, seq_len: usize) -> u64 {
        match &self.packed {
            Some(packed) => packed.rows,
            None => self.tokens.saturating_sub(1) / seq_len as u64,
        }
    }
}

/// One shard file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardEntry {
    pub(crate) file: String,
    pub(crate) tokens: u64,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) bytes: u64,
    pub(crate) xxh3: String,
}

impl FileEntry {
    /// Reads a file and says what it is.
    pub(crate) fn of(path: &Path) -> Result<Self, DataError> {
        let mut file = fs::File::open(path)?;
        let mut hash = Xxh3::new();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(Self {
                    bytes,
                    xxh3: format!("{:016x}", hash.digest()),
                });
            }
            hash.update(&buffer[..read]);
            bytes += read as u64;
        }
    }
}

impl Manifest {
    /// The file's bytes, checksum filled in.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let blank = Self {
            xxh3: NO_CHECKSUM.to_owned(),
            ..self.clone()
        };
        let mut text =
            serde_json::to_string_pretty(&blank).expect("numbers and strings are always JSON");
        text.push('\n');
        let checksum = format!("{:016x}", xxh3_64(text.as_bytes()));
        text.replacen(NO_CHECKSUM, &checksum, 1).into_bytes()
    }

    /// Reads and checks the manifest of an entry; the reason if it cannot be used.
    pub(crate) fn read(entry: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(entry.join(MANIFEST)).map_err(|error| error.to_string())?;
        let start = text.find(CHECKSUM_KEY).map(|at| at + CHECKSUM_KEY.len());
        let digits = start.and_then(|start| text.get(start..start + NO_CHECKSUM.len()));
        let (Some(start), Some(digits)) = (start, digits) else {
            return Err(format!("{MANIFEST} has no checksum"));
        };
        let mut blank = text.clone();
        blank.replace_range(start..start + NO_CHECKSUM.len(), NO_CHECKSUM);
        if digits != format!("{:016x}", xxh3_64(blank.as_bytes())) {
            return Err(format!("{MANIFEST} does not match its checksum"));
        }
        let manifest: Self =
            serde_json::from_str(&text).map_err(|error| format!("{MANIFEST}: {error}"))?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(format!(
                "{MANIFEST} has format version {}, this program reads {FORMAT_VERSION}",
                manifest.format_version
            ));
        }
        Ok(manifest)
    }

    /// Compares the size of every file with what was written; the reason if one differs.
    pub(crate) fn check_sizes(&self, entry: &Path) -> Result<(), String> {
        for (name, expected) in &self.files {
            let found = fs::metadata(entry.join(name))
                .map_err(|error| error.to_string())?
                .len();
            if found != expected.bytes {
                return Err(format!(
                    "{name} has {found} bytes instead of {}",
                    expected.bytes
                ));
            }
        }
        Ok(())
    }

    /// Reads every file and compares it with its checksum; the reason if one differs.
    pub(crate) fn check_contents(&self, entry: &Path) -> Result<(), String> {
        for (name, expected) in &self.files {
            let found = FileEntry::of(&entry.join(name)).map_err(|error| error.to_string())?;
            if found != *expected {
                return Err(format!("{name} does not match its checksum"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_byte_is_noticed() {
        let manifest = Manifest {
            xxh3: String::new(),
            format_version: FORMAT_VERSION,
            fingerprint: "f".repeat(64),
            tokenizer_sha256: "0".repeat(64),
            vocab_size: 300,
            end_of_text: 0,
            sources: vec![Source {
                name: "a".to_owned(),
                sha256: "1".repeat(64),
                train: Split {
                    tokens: 12,
                    unigram_bits: 0.1 + 0.2,
                    ..Split::default()
                },
                validation: Split::default(),
            }],
            files: BTreeMap::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let bytes = manifest.to_bytes();
        let path = dir.path().join(MANIFEST);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(
            Manifest::read(dir.path()).unwrap().sources,
            manifest.sources
        );
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(Manifest::read(dir.path()).is_err(), "byte {at}");
        }
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(Manifest::read(dir.path()).is_err());
    }
}
