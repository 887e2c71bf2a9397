//! Which source a slot of the sample stream is drawn from, in closed form.
//!
//! Slots come in blocks of 2^32. Weights become whole numbers of slots that sum to the block,
//! `floor(C_s 2^32 + 1/2)` differences of the cumulative weights `C_s`, so that each block gives
//! each source exactly its quota. Within a block a keyed permutation decides: slot `k` is sent to a
//! position `p`, and source `s` owns the positions of its interval of the cumulative weights. The
//! permutation is a scrambled bit reversal (Owen, "Randomly permuted (t,m,s)-nets and
//! (t,s)-sequences", 1995): bit `i` of `k`, from the lowest, becomes bit `i` of `p`, from the
//! highest, flipped by a keyed hash of the bits of `k` below it. Every aligned run of 2^m slots
//! then visits each of the 2^m equal parts of the block once, so that any such run, however short,
//! gives each source its share to within two slots. A plain shuffle of a block is right only at the
//! block's end, which a small corpus never reaches. Simple shares come out regular, halves as
//! strict turns: batches of one make-up are wanted, not chance.
//!
//! How often a source was drawn before a slot follows by counting along the bits of its interval's
//! ends: no table, O(32).

use super::permutation::{key, mix};

const BITS: u32 = 32;
const BLOCK: u64 = 1 << BITS;

/// Sets the keys of the mixture apart from those of the windows' order.
const DOMAIN: u64 = 0x6d69_7874_7572_6531;

/// Sources in fixed shares.
#[derive(Clone, Debug)]
pub(crate) struct Mixture {
    key: u64,
    /// Where each source's interval of positions ends; the last is the block's length.
    ends: Vec<u64>,
}

/// A source, and how often it was drawn before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Draw {
    pub(crate) source: usize,
    pub(crate) index: u64,
}

impl Mixture {
    /// Shares in proportion to `weights`: finite, none negative, not all zero. `None` if one that
    /// is not zero is below 2^-32 of their sum.
    pub(crate) fn new(weights: &[f64], seed: u64) -> Option<Self> {
        let total: f64 = weights.iter().sum();
        let mut cumulative = 0.0;
        let mut ends: Vec<u64> = weights
            .iter()
            .map(|weight| {
                cumulative += weight;
                ((cumulative / total * BLOCK as f64).round() as u64).min(BLOCK)
            })
            .collect();
        // Rounding of the sums must not leave positions without a source, nor give them to one of
        // weight zero.
        let last = weights.iter().rposition(|&weight| weight > 0.0)?;
        ends[last..].fill(BLOCK);
        let mixture = Self {
            key: key(&[DOMAIN, seed]),
            ends,
        };
        let visible = |source: usize| mixture.start(source) < mixture.ends[source];
        (0..weights.len())
            .all(|source| weights[source] <= 0.0 || visible(source))
            .then_some(mixture)
    }

    /// The source of a slot.
    pub(crate) fn draw(&self, slot: u64) -> Draw {
        let (block, within) = (slot / BLOCK, slot % BLOCK);
        let position = self.position(within);
        let source = self.ends.partition_point(|&end| end <= position);
        let (start, end) = (self.start(source), self.ends[source]);
        let before = self.count_below(end, within) - self.count_below(start, within);
        Draw {
            source,
            index: block * (end - start) + before,
        }
    }

    fn start(&self, source: usize) -> u64 {
        source.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Whether the bit after these lowest bits of a slot is flipped.
    fn flip(&self, level: u32, low_bits: u64) -> u64 {
        mix(self.key ^ (u64::from(level) << BITS | low_bits)) & 1
    }

    /// Where a slot of a block is sent.
    fn position(&self, slot: u64) -> u64 {
        (0..BITS).fold(0, |position, level| {
            let low_bits = slot & ((1 << level) - 1);
            let bit = (slot >> level & 1) ^ self.flip(level, low_bits);
            position << 1 | bit
        })
    }

    /// How many of the slots `0..slots` of a block are sent below `end`.
    ///
    /// Walks from the highest bit of `end` down: where that bit is 1, all positions with a 0 there
    /// (and the same bits above) lie below. They are the slots with certain low bits, which come
    /// every `2^(level + 1)` slots.
    fn count_below(&self, end: u64, slots: u64) -> u64 {
        if end == BLOCK {
            return slots;
        }
        let mut count = 0;
        let mut low_bits = 0;
        for level in 0..BITS {
            let flip = self.flip(level, low_bits);
            let bit = end >> (BITS - 1 - level) & 1;
            if bit == 1 {
                let first = low_bits | flip << level;
                count += slots.saturating_sub(first).div_ceil(1 << (level + 1));
            }
            low_bits |= (bit ^ flip) << level;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weights() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.001f64..10.0, 1..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn draws_of_a_source_are_numbered_in_turn(weights in weights(), seed: u64) {
            let mixture = Mixture::new(&weights, seed).unwrap();
            let mut drawn = vec![0; weights.len()];
            for slot in 0..1000 {
                let draw = mixture.draw(slot);
                prop_assert_eq!(draw.index, drawn[draw.source]);
                drawn[draw.source] += 1;
            }
        }

        #[test]
        fn every_aligned_run_has_its_shares(weights in weights(), seed: u64, run in 0u32..10, start in 0u64..1 << 40) {
            let mixture = Mixture::new(&weights, seed).unwrap();
            let total: f64 = weights.iter().sum();
            let length = 1u64 << run;
            let start = start >> run << run;
            let mut drawn = vec![0.0; weights.len()];
            for slot in start..start + length {
                drawn[mixture.draw(slot).source] += 1.0;
            }
            for (count, weight) in drawn.iter().zip(&weights) {
                prop_assert!((count - length as f64 * weight / total).abs() < 2.0);
            }
        }

        #[test]
        fn numbering_goes_on_across_blocks(weights in weights(), seed: u64, block in 1u64..1000) {
            let mixture = Mixture::new(&weights, seed).unwrap();
            let mut next: Vec<Option<u64>> = vec![None; weights.len()];
            for slot in block * BLOCK - 300..block * BLOCK + 300 {
                let draw = mixture.draw(slot);
                let expected = next[draw.source].unwrap_or(draw.index);
                prop_assert_eq!(draw.index, expected);
                next[draw.source] = Some(draw.index + 1);
            }
        }
    }

    #[test]
    fn positions_of_a_run_fall_into_different_parts() {
        let mixture = Mixture::new(&[1.0], 5).unwrap();
        for run in [0, 1, 4, 10] {
            let length = 1 << run;
            let mut parts: Vec<u64> = (0..length)
                .map(|slot| mixture.position(slot) >> (BITS - run))
                .collect();
            parts.sort_unstable();
            assert_eq!(parts, (0..length).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seeds_differ() {
        let pattern = |seed: u64| -> Vec<usize> {
            let mixture = Mixture::new(&[0.3, 0.7], seed).unwrap();
            (0..64).map(|slot| mixture.draw(slot).source).collect()
        };
        assert_ne!(pattern(1), pattern(2));
    }

    #[test]
    fn zero_weights_are_never_drawn_and_tiny_ones_refused() {
        let mixture = Mixture::new(&[0.0, 1.0, 0.0, 3.0, 0.0], 9).unwrap();
        for slot in 0..5000 {
            assert!([1, 3].contains(&mixture.draw(slot).source));
        }
        assert!(Mixture::new(&[1.0, 1e-12], 9).is_none());
        assert!(Mixture::new(&[1e-12, 1.0], 9).is_none());
    }
}
