//! Samples of the stream to batches of tokens.
//!
//! Keeps no position: the same samples give the same batch at any time, so that there is no state
//! to save or restore.

use std::ops::Range;

use crate::corpus::SplitReader;
use crate::order::{Order, Sample};
use crate::{Batch, Corpus, DataError};

/// Reads batches of a corpus's training split. May be shared by threads.
#[derive(Debug)]
pub struct Loader {
    readers: Vec<SplitReader>,
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
            source.check_packing(&source.train, seq_len)?;
            let sequences = source.train.sequences(seq_len);
            let unused = weights.and_then(|weights| weights.get(index)) == Some(&0.0);
            if sequences == 0 && !unused {
                return Err(DataError::SourceTooShort {
                    name: source.name.clone(),
                    tokens: source.train.tokens,
                    seq_len,
                });
            }
            windows.push(sequences);
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

    /// Sequences that each source holds: of text the windows of tokens `i * seq_len ..= (i + 1) *
    /// seq_len`, so that targets do not overlap; of examples the rows they were packed into.
    pub fn windows(&self) -> &[u64] {
        &self.windows
    }

    /// The order in which they are read.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// Reads samples of the stream, one per row. If any source is of examples, every batch has a mask
    /// and documents, in which a window of text is one document.
    pub fn read(&self, samples: Range<u64>) -> Result<Batch, DataError> {
        let rows = samples.end.saturating_sub(samples.start) as usize;
        let row_len = self.seq_len + 1;
        let mut tokens = vec![0; rows * row_len];
        let mut learned = vec![1; rows * self.seq_len];
        let mut begins = Vec::new();
        let mut sources = Vec::with_capacity(rows);
        let all_rows = tokens
            .chunks_exact_mut(row_len)
            .zip(learned.chunks_exact_mut(self.seq_len));
        for (position, (row, row_learned)) in samples.zip(all_rows) {
            let Sample { source, window, .. } = self.order.sample(position);
            let first = (sources.len() * self.seq_len) as u32;
            match &self.readers[source] {
                SplitReader::Text(reader) => {
                    reader.read(window * self.seq_len as u64, row)?;
                    begins.push(first);
                }
                SplitReader::Packed(reader) => {
                    reader.read(window, row, row_learned, first, &mut begins)?;
                }
            }
            sources.push(source as u16);
        }
        begins.push((rows * self.seq_len) as u32);
        let packed = |reader: &SplitReader| matches!(reader, SplitReader::Packed(_));
        let any_packed = self.readers.iter().any(packed);
        Ok(Batch {
            rows,
            seq_len: self.seq_len,
            tokens,
            loss_mask: any_packed.then_some(learned),
            documents: any_packed.then_some(begins),
            sources,
        })
    }
}
