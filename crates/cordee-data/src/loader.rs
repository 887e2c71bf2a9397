//! Samples of the stream to batches of tokens.
//!
//! Keeps no position: the same samples give the same batch at any time, so that there is no state
//! to save or restore.

use std::ops::Range;

use crate::order::{Order, Sample};
use crate::reader::TokenReader;
use crate::{Batch, Corpus, DataError};

/// Reads batches of a corpus's training split. May be shared by threads.
#[derive(Debug)]
pub struct Loader {
    readers: Vec<TokenReader>,
    order: Order,
    windows: Vec<u64>,
    seq_len: usize,
}

impl Loader {
    /// Sequences of `seq_len` targets in the order of `seed`. `weights` are relative shares of the
    /// sequences, one per source of the corpus; in proportion to the sequences that each holds when
    /// `None`. A source of weight 0 is not read.
    pub fn new(
        corpus: &Corpus,
        seq_len: usize,
        seed: u64,
        weights: Option<&[f64]>,
    ) -> Result<Self, DataError> {
        if seq_len == 0 {
            return Err(DataError::ZeroSeqLen);
        }
        let mut windows = Vec::new();
        let mut readers = Vec::new();
        for (index, source) in corpus.sources().iter().enumerate() {
            let tokens = source.train.tokens;
            let unused = weights.and_then(|weights| weights.get(index)) == Some(&0.0);
            if tokens <= seq_len as u64 && !unused {
                return Err(DataError::SourceTooShort {
                    name: source.name.clone(),
                    tokens,
                    seq_len,
                });
            }
            windows.push(tokens.saturating_sub(1) / seq_len as u64);
            readers.push(corpus.reader(&source.train)?);
        }
        let order = Order::new(windows.clone(), weights, seed)?;
        Ok(Self {
            readers,
            order,
            windows,
            seq_len,
        })
    }

    /// Targets per sequence.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Sequences that each source holds: window `i` has the tokens `i * seq_len ..= (i + 1) *
    /// seq_len`, so that targets do not overlap.
    pub fn windows(&self) -> &[u64] {
        &self.windows
    }

    /// The order in which they are read.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// Reads samples of the stream, one per row.
    pub fn read(&self, samples: Range<u64>) -> Result<Batch, DataError> {
        let rows = samples.end.saturating_sub(samples.start) as usize;
        let row_len = self.seq_len + 1;
        let mut tokens = vec![0; rows * row_len];
        let mut sources = Vec::with_capacity(rows);
        for (position, row) in samples.zip(tokens.chunks_exact_mut(row_len)) {
            let Sample { source, window, .. } = self.order.sample(position);
            self.readers[source].read(window * self.seq_len as u64, row)?;
            sources.push(source as u16);
        }
        Ok(Batch {
            rows,
            seq_len: self.seq_len,
            tokens,
            loss_mask: None,
            documents: None,
            sources,
        })
    }
}
