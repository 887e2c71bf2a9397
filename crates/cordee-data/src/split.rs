//! One split of one source on its way to disk: ids in, shards and figures out.

use std::path::Path;

use crate::manifest::Split;
use crate::shard::{MOST_TOKENS, ShardWriter, TokenWidth, ends_file};
use crate::{DataError, Tokenizer};

/// Writes the documents of one split.
pub(crate) struct SplitWriter {
    shards: ShardWriter,
    /// How often each id occurs.
    counts: Vec<u64>,
    begin_of_document: Vec<u32>,
    end_of_text: u32,
    split: Split,
}

impl SplitWriter {
    /// Files named `<stem>...` in `dir`.
    pub(crate) fn create(dir: &Path, stem: &str, tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let width = TokenWidth::of_vocabulary(tokenizer.vocab_size());
        Ok(Self {
            shards: ShardWriter::create(dir, stem, width, MOST_TOKENS)?,
            counts: vec![0; tokenizer.vocab_size()],
            begin_of_document: tokenizer.begin_of_document().to_vec(),
            end_of_text: tokenizer.end_of_text(),
            split: Split {
                document_ends: ends_file(stem),
                ..Split::default()
            },
        })
    }

    /// Whether nothing has been written yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.split.tokens == 0
    }

    /// Notes how much of the text the first token stands for.
    pub(crate) fn set_first_token_bytes(&mut self, bytes: u64) {
        self.split.first_token_bytes = bytes;
    }

    /// Begins a document.
    pub(crate) fn begin_document(&mut self) -> Result<(), DataError> {
        let ids = self.begin_of_document.clone();
        self.push_ids(&ids)
    }

    /// Appends a piece of a document, given with its ids.
    pub(crate) fn push(&mut self, text: &str, ids: &[u32]) -> Result<(), DataError> {
        self.split.bytes += text.len() as u64;
        self.push_ids(ids)
    }

    /// Ends the document.
    pub(crate) fn end_document(&mut self) -> Result<(), DataError> {
        self.push_ids(&[self.end_of_text])?;
        self.split.documents += 1;
        self.shards.end_document()
    }

    /// Completes the files.
    pub(crate) fn finish(self) -> Result<Split, DataError> {
        Ok(Split {
            shards: self.shards.finish()?,
            unigram_bits: entropy_bits(&self.counts),
            ..self.split
        })
    }

    fn push_ids(&mut self, ids: &[u32]) -> Result<(), DataError> {
        for &id in ids {
            self.counts[id as usize] += 1;
        }
        self.split.tokens += ids.len() as u64;
        self.shards.push(ids)
    }
}

/// Shannon entropy of the frequencies, `-sum p log2 p`, in bits; 0 for no or one kind of token.
fn entropy_bits(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let bits: f64 = counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| {
            let share = count as f64 / total as f64;
            share * -share.log2()
        })
        .sum();
    bits.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_coins_and_dice() {
        assert!((entropy_bits(&[5, 0, 5]) - 1.0).abs() < 1e-12);
        assert!((entropy_bits(&[3; 8]) - 3.0).abs() < 1e-12);
        assert!((entropy_bits(&[2, 1, 1]) - 1.5).abs() < 1e-12);
        assert!(entropy_bits(&[7]).abs() < 1e-12);
        assert!(entropy_bits(&[]).abs() < 1e-12);
    }
}
