//! Held-out text as batches: every token but the first of a source is predicted exactly once.

use std::ops::Range;

use crate::manifest::Split;
use crate::reader::TokenReader;
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
    reader: TokenReader,
}

impl Validation {
    /// Windows of `seq_len` targets.
    pub fn new(corpus: &Corpus, seq_len: usize) -> Result<Self, DataError> {
        if seq_len == 0 {
            return Err(DataError::ZeroSeqLen);
        }
        let mut sources = Vec::new();
        for source in corpus.sources() {
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

    /// Number of sources; those without held-out text count.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// The name of a source.
    pub fn name(&self, source: usize) -> &str {
        &self.sources[source].name
    }

    /// Windows of a source; 0 if it holds out fewer than two tokens. The last may be partly
    /// padding.
    pub fn windows(&self, source: usize) -> u64 {
        self.tokens_predicted(source).div_ceil(self.seq_len as u64)
    }

    /// Targets over all windows of a source: its tokens but the first.
    pub fn tokens_predicted(&self, source: usize) -> u64 {
        self.sources[source].split.tokens.saturating_sub(1)
    }

    /// Bytes of text that these targets stand for. With the sum of their negative log-likelihoods
    /// in nats, `nll_sum / ln 2 / bytes` is the model's bits per byte.
    pub fn bytes(&self, source: usize) -> u64 {
        let split = &self.sources[source].split;
        split.bytes.saturating_sub(split.first_token_bytes)
    }

    /// Bits per byte of the best model that ignores context: the entropy of the tokens' own
    /// frequencies. `None` without held-out text.
    pub fn unigram_bits_per_byte(&self, source: usize) -> Option<f64> {
        let bytes = self.bytes(source);
        let bits = self.sources[source].split.unigram_bits * self.tokens_predicted(source) as f64;
        (bytes > 0).then(|| bits / bytes as f64)
    }

    /// Reads windows of a source, one per row. Always with a mask: padding, which is the
    /// end-of-text token, does not count.
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
        for (window, (row, row_mask)) in windows.zip(all_rows) {
            let HeldOut { split, reader, .. } = &self.sources[source];
            let start = window * self.seq_len as u64;
            let count = (split.tokens - start).min(row.len() as u64) as usize;
            reader.read(start, &mut row[..count])?;
            row_mask[..count - 1].fill(1);
        }
        Ok(Batch {
            rows,
            seq_len: self.seq_len,
            tokens,
            loss_mask: Some(mask),
            documents: None,
            sources: vec![source as u16; rows],
        })
    }
}
