//! A keyed permutation of `0..n` in closed form: no table, any position in O(1).
//!
//! A Feistel network over the smallest even number of bits that holds `n` values, walked along its
//! cycle until it lands inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
//! Not for secrets: it only has to look shuffled.

/// Rounds of the network; four already pass simple tests, eight leave a margin.
const ROUNDS: usize = 8;

/// Half the bits of the smallest network: below that, few of the permutations of a small set can
/// occur.
const LEAST_HALF_BITS: u32 = 4;

/// Mixes all bits of a word into all bits (the finaliser of `SplitMix64`; Steele, Lea and Flood,
/// 2014). A bijection.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// One key from several numbers, different for each sequence of numbers.
pub(crate) fn key(numbers: &[u64]) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    numbers.iter().fold(GOLDEN, |key, &number| {
        mix(mix(key ^ number).wrapping_add(GOLDEN))
    })
}

/// A permutation of `0..len`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..len` with this key; `len` at least 1.
    pub(crate) fn new(len: u64, seed: u64) -> Self {
        assert!(len > 0, "nothing to permute");
        let bits = u64::BITS - (len - 1).leading_zeros();
        let mut keys = [0; ROUNDS];
        for (round, round_key) in keys.iter_mut().enumerate() {
            *round_key = key(&[seed, round as u64]);
        }
        Self {
            len,
            half_bits: bits.div_ceil(2).max(LEAST_HALF_BITS),
            keys,
        }
    }

    /// Where `index` goes; both are below `len`.
    pub(crate) fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.len, "{index} is outside 0..{}", self.len);
        let mut value = self.network(index);
        // Ends: the cycle through `index` comes back to it, which is inside.
        while value >= self.len {
            value = self.network(value);
        }
        value
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round_key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ round_key) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_comes_once(len in 1u64..3000, seed: u64) {
            let permutation = Permutation::new(len, seed);
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                let value = permutation.at(index) as usize;
                prop_assert!(!seen[value]);
                seen[value] = true;
            }
        }

        #[test]
        fn large_domains_stay_inside(len in 1u64..=u64::MAX, index: u64, seed: u64) {
            let permutation = Permutation::new(len, seed);
            prop_assert!(permutation.at(index % len) < len);
        }
    }

    #[test]
    fn many_values_come_once() {
        let len = 300_007;
        let permutation = Permutation::new(len, 17);
        let mut seen = vec![false; len as usize];
        for index in 0..len {
            seen[permutation.at(index) as usize] = true;
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    /// Pearson's statistic for equal expected counts.
    fn chi_squared(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        counts
            .iter()
            .map(|&count| (count as f64 - expected).powi(2) / expected)
            .sum()
    }

    /// Five standard deviations above the mean of the chi-squared distribution.
    fn bound(cells: usize) -> f64 {
        let freedom = (cells - 1) as f64;
        freedom + 5.0 * (2.0 * freedom).sqrt()
    }

    #[test]
    fn over_seeds_every_index_goes_everywhere() {
        for len in [2u64, 3, 5, 10, 100, 257] {
            for index in [0, len / 2, len - 1] {
                let mut counts = vec![0; len as usize];
                for seed in 0..5_000 {
                    counts[Permutation::new(len, seed).at(index) as usize] += 1;
                }
                let statistic = chi_squared(&counts);
                assert!(
                    statistic < bound(counts.len()),
                    "{len} {index}: {statistic}"
                );
            }
        }
    }

    #[test]
    fn over_seeds_all_orders_of_a_few_occur_alike() {
        let mut counts = vec![0; 24];
        for seed in 0..12_000 {
            let permutation = Permutation::new(4, seed);
            let order: Vec<u64> = (0..4).map(|index| permutation.at(index)).collect();
            let rank = (0..4).fold(0, |rank, at| {
                rank * (4 - at)
                    + (at + 1..4)
                        .filter(|&later| order[later] < order[at])
                        .count()
            });
            counts[rank] += 1;
        }
        assert!(chi_squared(&counts) < bound(24), "{counts:?}");
    }

    #[test]
    fn within_one_seed_neighbours_are_unrelated() {
        let (len, cells) = (50_000u64, 50u64);
        for seed in 0..4 {
            let permutation = Permutation::new(len, seed);
            let mut steps = vec![0; cells as usize];
            let mut early = vec![0; cells as usize];
            for index in 0..len - 1 {
                let (here, next) = (permutation.at(index), permutation.at(index + 1));
                steps[((next + len - here) % len * cells / len) as usize] += 1;
                if index < len / 10 {
                    early[(here * cells / len) as usize] += 1;
                }
            }
            assert!(chi_squared(&steps) < bound(steps.len()), "{steps:?}");
            assert!(chi_squared(&early) < bound(early.len()), "{early:?}");
        }
    }
}
