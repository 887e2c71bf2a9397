//! Held-out data as batches: every token of a text but the first is predicted exactly once, and of
//! examples what would be learned.

use std::ops::Range;

use crate::corpus::SplitReader;
use crate::manifest::Split;
use crate::{Batch, Corpus, DataError};

/// The validation splits of a corpus in consecutive windows.
#[derive(Debug)]
pub struct Validation {
    sources: Vec<HeldOut>,
    seq_len: usize,
    padding: u32,
}

#[derive(Debug)]
struct HeldOut {
    name: String,
    split: Split,
    reader: SplitReader,
}

impl Validation {
    /// Windows of `seq_len` targets.
    pub fn new(corpus: &Corpus, seq_len: usize) -> Result<Self, DataError> {
        if seq_len == 0 {
            return Err(DataError::ZeroSeqLen);
        }
        let mut sources = Vec::new();
        for source in corpus.sources() {
            source.check_packing(&source.validation, seq_len)?;
            sources.push(HeldOut {
                name: source.name.clone(),
                reader: corpus.reader(&source.validation)?,
                split: source.validation.clone(),
            });
        }
        Ok(Self {
            sources,
            seq_len,
            padding: corpus.end_of_text(),
        })
    }

    /// Number of sources; those without held-out data count.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// The name of a source.
    pub fn name(&self, source: usize) -> &str {
        &self.sources[source].name
    }

    /// Windows of a source of text, 0 if it holds out fewer than two tokens; the last may be partly
    /// padding. Rows of a source of examples.
    pub fn windows(&self, source: usize) -> u64 {
        match &self.sources[source].split.packed {
            Some(packed) => packed.rows,
            None => self.tokens_predicted(source).div_ceil(self.seq_len as u64),
        }
    }

    /// Targets that count, over all windows of a source: of a text its tokens but the first, of
    /// examples those that would be learned.
    pub fn tokens_predicted(&self, source: usize) -> u64 {
        let split = &self.sources[source].split;
        match &split.packed {
            Some(packed) => packed.learned,
            None => split.tokens.saturating_sub(1),
        }
    }

    /// Bytes of text that these targets stand for. With the sum of their negative log-likelihoods
    /// in nats, `nll_sum / ln 2 / bytes` is the model's bits per byte. `None` for examples: what is
    /// given with them makes bytes of theirs cheaper than bytes of a text.
    pub fn bytes(&self, source: usize) -> Option<u64> {
        let split = &self.sources[source].split;
        let bytes = split.bytes.saturating_sub(split.first_token_bytes);
        split.packed.is_none().then_some(bytes)
    }

    /// Bits per byte of the best model that ignores context: the entropy of the tokens' own
    /// frequencies. `None` for examples and without held-out text.
    pub fn unigram_bits_per_byte(&self, source: usize) -> Option<f64> {
        let bytes = self.bytes(source)?;
        let bits = self.sources[source].split.unigram_bits * self.tokens_predicted(source) as f64;
        (bytes > 0).then(|| bits / bytes as f64)
    }

    /// Reads windows of a source, one per row. Always with a mask: padding, which is the
    /// end-of-text token, does not count, nor does what examples only give. Examples come with their
    /// documents.
    pub fn read(&self, source: usize, windows: Range<u64>) -> Result<Batch, DataError> {
        let there = if source < self.sources.len() {
            self.windows(source)
        } else {
            0
        };
        if windows.start > windows.end || windows.end > there {
            let Range { start, end } = windows;
            return Err(DataError::NoSuchWindow {
                source_index: source,
                start,
                end,
                windows: there,
            });
        }
        let rows = (windows.end - windows.start) as usize;
        let mut tokens = vec![self.padding; rows * (self.seq_len + 1)];
        let mut mask = vec![0; rows * self.seq_len];
        let all_rows = tokens
            .chunks_exact_mut(self.seq_len + 1)
            .zip(mask.chunks_exact_mut(self.seq_len));
        let HeldOut { split, reader, .. } = &self.sources[source];
        let mut begins = Vec::new();
        for (index, (window, (row, row_mask))) in windows.zip(all_rows).enumerate() {
            match reader {
                SplitReader::Text(reader) => {
                    let start = window * self.seq_len as u64;
                    let count = (split.tokens - start).min(row.len() as u64) as usize;
                    reader.read(start, &mut row[..count])?;
                    row_mask[..count - 1].fill(1);
                }
                SplitReader::Packed(reader) => {
                    let first = (index * self.seq_len) as u32;
                    reader.read(window, row, row_mask, first, &mut begins)?;
                }
            }
        }
        begins.push((rows * self.seq_len) as u32);
        Ok(Batch {
            rows,
            seq_len: self.seq_len,
            tokens,
            loss_mask: Some(mask),
            documents: split.packed.is_some().then_some(begins),
            sources: vec![source as u16; rows],
        })
    }
}
