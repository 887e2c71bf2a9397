//! A batch of sequences, and which samples of the stream a rank puts into one.

use std::ops::Range;

/// Sequences of equal length, ready for a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Sequences.
    pub rows: usize,
    /// Targets per sequence.
    pub seq_len: usize,
    /// `rows x (seq_len + 1)`, row-major: inputs are the first `seq_len` tokens of a row, targets
    /// the last `seq_len`.
    pub tokens: Vec<u32>,
    /// `rows x seq_len`: 1 where the target counts, 0 where it does not; all targets count when
    /// absent.
    pub loss_mask: Option<Vec<u8>>,
    /// Where sequences that must not see each other begin, over the `rows x seq_len` inputs: begins
    /// with 0, ends with their number, strictly rising; no sequence crosses a row. Each row is one
    /// sequence when absent.
    pub documents: Option<Vec<u32>>,
    /// The source of each row.
    pub sources: Vec<u16>,
}

impl Batch {
    /// The `seq_len + 1` tokens of a row.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.tokens[row * (self.seq_len + 1)..(row + 1) * (self.seq_len + 1)]
    }
}

/// How the sequences of a step are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Sequences per step over all ranks.
    pub global_batch: usize,
    /// Sequences that a rank computes at once.
    pub micro_batch: usize,
    /// Number of ranks.
    pub world: usize,
}

impl BatchShape {
    /// Micro-batches per step: enough for the rank with the most sequences. Where the world size
    /// does not divide the batch, others may find the last one empty.
    pub fn micro_batches(&self) -> usize {
        self.global_batch
            .div_ceil(self.world)
            .div_ceil(self.micro_batch)
    }
}

/// The samples of the stream that a rank reads for a micro-batch of a step (all 0-based).
///
/// With batch `G` and `W` ranks, step `n` reads samples `nG..(n+1)G`, and rank `r` of those the
/// ones from `floor(rG/W)` to `floor((r+1)G/W)`: the same samples in the same step for any world
/// size.
pub fn samples_for(step: u64, micro: usize, rank: usize, shape: &BatchShape) -> Range<u64> {
    let first_of =
        |rank: usize| (rank as u128 * shape.global_batch as u128 / shape.world as u128) as u64;
    let (start, end) = (first_of(rank), first_of(rank + 1));
    let micro_start = start
        .saturating_add(micro as u64 * shape.micro_batch as u64)
        .min(end);
    let micro_end = micro_start
        .saturating_add(shape.micro_batch as u64)
        .min(end);
    let base = step * shape.global_batch as u64;
    base + micro_start..base + micro_end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_share_the_same_samples_whatever_their_number(
            global_batch in 1usize..100, micro_batch in 1usize..20, world in 1usize..17, step in 0u64..1000,
        ) {
            let shape = BatchShape { global_batch, micro_batch, world };
            let mut samples = Vec::new();
            for rank in 0..world {
                for micro in 0..shape.micro_batches() {
                    let range = samples_for(step, micro, rank, &shape);
                    prop_assert!(range.end - range.start <= micro_batch as u64);
                    samples.extend(range);
                }
                prop_assert!(samples_for(step, shape.micro_batches(), rank, &shape).is_empty());
            }
            let all: Vec<u64> = (step * global_batch as u64..(step + 1) * global_batch as u64).collect();
            prop_assert_eq!(samples, all);
        }
    }

    #[test]
    fn a_known_case() {
        let shape = BatchShape {
            global_batch: 8,
            micro_batch: 2,
            world: 2,
        };
        assert_eq!(shape.micro_batches(), 2);
        assert_eq!(samples_for(3, 1, 1, &shape), 30..32);
    }
}
