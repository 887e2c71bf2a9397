//! A prepared corpus: tokens on disk, and what is known of them.

use std::path::{Path, PathBuf};

use crate::manifest::{Manifest, Source, Split, TOKENIZER, TOKENIZER_CONFIG};
use crate::packed::PackedReader;
use crate::reader::TokenReader;
use crate::shard::TokenWidth;
use crate::{DataError, Tokenizer};

/// A prepared corpus. Small: it holds its manifest, not its tokens; other processes open the same
/// [`Corpus::entry`].
#[derive(Clone, Debug)]
pub struct Corpus {
    entry: PathBuf,
    manifest: Manifest,
}

impl Corpus {
    /// Opens a corpus that [`prepare`](crate::prepare) has written, by its directory. Checks the
    /// manifest and the size of every file.
    pub fn open(entry: &Path) -> Result<Self, DataError> {
        let checked = Manifest::read(entry).and_then(|manifest| {
            manifest.check_sizes(entry)?;
            Ok(manifest)
        });
        match checked {
            Ok(manifest) => Ok(Self {
                entry: entry.to_owned(),
                manifest,
            }),
            Err(reason) => Err(DataError::Damaged {
                entry: entry.to_owned(),
                reason,
            }),
        }
    }

    /// Reads all of it and compares it with its checksums.
    pub fn verify(&self) -> Result<(), DataError> {
        self.manifest
            .check_contents(&self.entry)
            .map_err(|reason| DataError::Damaged {
                entry: self.entry.clone(),
                reason,
            })
    }

    /// Bytes of all its files.
    pub(crate) fn bytes(&self) -> u64 {
        self.manifest.files.values().map(|file| file.bytes).sum()
    }

    /// Its directory.
    pub fn entry(&self) -> &Path {
        &self.entry
    }

    /// Its sources, in the order of the config.
    pub fn sources(&self) -> &[Source] {
        &self.manifest.sources
    }

    /// All token ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.manifest.vocab_size
    }

    /// The id that stands after each document.
    pub fn end_of_text(&self) -> u32 {
        self.manifest.end_of_text
    }

    /// Its copy of the tokenizer's file.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.entry.join(TOKENIZER)
    }

    /// Its `tokenizer_config.json`: what is known of the tokenizer beside its file.
    pub fn tokenizer_config_path(&self) -> PathBuf {
        self.entry.join(TOKENIZER_CONFIG)
    }

    /// Opens its tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, DataError> {
        Tokenizer::open(&self.tokenizer_path())
    }

    /// SHA-256 of the tokenizer's file, in hex.
    pub fn tokenizer_sha256(&self) -> &str {
        &self.manifest.tokenizer_sha256
    }

    /// Equal, in hex, exactly if data, its format, the held-out share, the vocabulary and, where
    /// examples are packed into sequences, their length are. Two runs with
    /// the same fingerprint, seed and weights read the same samples.
    pub fn fingerprint(&self) -> &str {
        &self.manifest.fingerprint
    }

    /// Where documents end in a split: positions after their last tokens, ascending. Where rows of
    /// examples are padded, the padding counts as a position but ends no document.
    pub fn document_ends(&self, split: &Split) -> Result<Vec<u64>, DataError> {
        let bytes = fs_err::read(self.entry.join(&split.document_ends))?;
        let (ends, _) = bytes.as_chunks::<8>();
        Ok(ends.iter().map(|&end| u64::from_le_bytes(end)).collect())
    }

    pub(crate) fn reader(&self, split: &Split) -> Result<SplitReader, DataError> {
        let width = TokenWidth::of_vocabulary(self.manifest.vocab_size);
        let tokens =
            TokenReader::open(&self.entry, &split.shards, width, self.manifest.vocab_size)?;
        Ok(match &split.packed {
            None => SplitReader::Text(tokens),
            Some(packed) => SplitReader::Packed(PackedReader::open(&self.entry, packed, tokens)?),
        })
    }
}

/// What reads the tokens of a split.
#[derive(Debug)]
pub(crate) enum SplitReader {
    Text(TokenReader),
    Packed(PackedReader),
}
