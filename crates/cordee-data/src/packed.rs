//! Rows of examples on disk: written once, read by their number.
//!
//! A row is `seq_len + 1` tokens in the shards, whole examples and then padding. Beside the shards
//! lies a file of marks, a byte for each of a row's `seq_len` inputs: whether the token after it is
//! learned, and whether a document begins at it. Both have rows of one size, so that any is found
//! without an index. Padding is the end-of-text token, a document of its own and never learned.

use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::encode::Encoded;
use crate::manifest::{Packed, Split};
use crate::pack::best_fit;
use crate::reader::TokenReader;
use crate::shard::{MOST_TOKENS, ShardWriter, TokenWidth, ends_file};
use crate::{DataError, Tokenizer};

/// The target of this input is learned.
const LEARNED: u8 = 1;
/// A document begins at this input.
const BEGINS: u8 = 2;

/// Tokens of examples that are packed at once; bounds the memory this takes.
const WINDOW: usize = 1 << 24;

/// Writes the examples of one split.
pub(crate) struct PackWriter {
    shards: ShardWriter,
    marks: BufWriter<fs::File>,
    padding: u32,
    window: Vec<Encoded>,
    window_tokens: usize,
    split: Split,
    packed: Packed,
}

impl PackWriter {
    /// Files named `<stem>...` in `dir`, for rows of `seq_len` targets.
    pub(crate) fn create(
        dir: &Path,
        stem: &str,
        tokenizer: &Tokenizer,
        seq_len: usize,
    ) -> Result<Self, DataError> {
        let width = TokenWidth::of_vocabulary(tokenizer.vocab_size());
        let marks = format!("{stem}.marks");
        Ok(Self {
            shards: ShardWriter::create(dir, stem, width, MOST_TOKENS)?,
            marks: BufWriter::new(fs::File::create(dir.join(&marks))?),
            padding: tokenizer.end_of_text(),
            window: Vec::new(),
            window_tokens: 0,
            split: Split {
                document_ends: ends_file(stem),
                ..Split::default()
            },
            packed: Packed {
                seq_len,
                marks,
                ..Packed::default()
            },
        })
    }

    /// Figures that the caller keeps: what became of examples before they came here.
    pub(crate) fn packed_mut(&mut self) -> &mut Packed {
        &mut self.packed
    }

    /// Adds an example of at most `seq_len + 1` tokens that stands for so many bytes of text.
    pub(crate) fn push(&mut self, example: Encoded, bytes: u64) -> Result<(), DataError> {
        self.split.documents += 1;
        self.split.bytes += bytes;
        self.split.tokens += example.ids.len() as u64;
        self.window_tokens += example.ids.len();
        self.window.push(example);
        if self.window_tokens >= WINDOW {
            self.flush()?;
        }
        Ok(())
    }

    /// Completes the files.
    pub(crate) fn finish(mut self) -> Result<Split, DataError> {
        self.flush()?;
        let marks = self.marks.into_inner();
        marks
            .map_err(std::io::IntoInnerError::into_error)?
            .sync_all()?;
        Ok(Split {
            shards: self.shards.finish()?,
            packed: Some(self.packed),
            ..self.split
        })
    }

    fn flush(&mut self) -> Result<(), DataError> {
        let examples = std::mem::take(&mut self.window);
        self.window_tokens = 0;
        let seq_len = self.packed.seq_len;
        let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
        for row in best_fit(&lengths, seq_len + 1) {
            let mut marks = Vec::with_capacity(seq_len + 1);
            for index in row {
                let example = &examples[index];
                self.shards.push(&example.ids)?;
                self.shards.end_document()?;
                marks.extend(marks_of(example));
            }
            let padding = seq_len + 1 - marks.len();
            self.shards.push(&vec![self.padding; padding])?;
            if padding > 0 {
                marks.push(BEGINS);
            }
            // The last token of a row is no input.
            marks.resize(seq_len, 0);
            self.marks.write_all(&marks)?;
            let learned = marks.iter().filter(|&&mark| mark & LEARNED != 0).count();
            self.packed.learned += learned as u64;
            self.packed.rows += 1;
        }
        Ok(())
    }
}

/// The marks of an example's tokens as inputs.
fn marks_of(example: &Encoded) -> impl Iterator<Item = u8> {
    let next_is_learned = example.learned.iter().skip(1).chain([&false]);
    next_is_learned.enumerate().map(|(at, &learned)| {
        let begins = if at == 0 { BEGINS } else { 0 };
        if learned { LEARNED | begins } else { begins }
    })
}

/// Reads the rows of one split; from several threads at once is fine.
#[derive(Debug)]
pub(crate) struct PackedReader {
    tokens: TokenReader,
    marks: fs::File,
    marks_path: PathBuf,
    seq_len: usize,
}

impl PackedReader {
    /// The rows whose tokens are read by `tokens`, in a corpus's directory.
    pub(crate) fn open(
        dir: &Path,
        packed: &Packed,
        tokens: TokenReader,
    ) -> Result<Self, DataError> {
        let marks_path = dir.join(&packed.marks);
        Ok(Self {
            tokens,
            marks: fs::File::open(&marks_path)?,
            marks_path,
            seq_len: packed.seq_len,
        })
    }

    /// Reads a row that exists: its `seq_len + 1` tokens, for each of its `seq_len` targets whether it
    /// is learned, and at which of its inputs documents begin, which is appended to `begins` with
    /// `first` added.
    pub(crate) fn read(
        &self,
        row: u64,
        tokens: &mut [u32],
        learned: &mut [u8],
        first: u32,
        begins: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        self.tokens.read(row * (self.seq_len as u64 + 1), tokens)?;
        let offset = row * self.seq_len as u64;
        let read = self.marks.file().read_exact_at(learned, offset);
        read.map_err(|source| DataError::Read {
            path: self.marks_path.clone(),
            offset,
            bytes: learned.len(),
            source,
        })?;
        for (position, mark) in learned.iter_mut().enumerate() {
            // No document goes over from the row before, whatever a mark says.
            if position == 0 || *mark & BEGINS != 0 {
                begins.push(first + position as u32);
            }
            *mark &= LEARNED;
        }
        Ok(())
    }
}
