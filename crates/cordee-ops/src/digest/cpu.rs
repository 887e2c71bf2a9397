//! Blocks over threads.

use rayon::prelude::*;

/// Bytes of a word.
const WORD: usize = 8;

/// Words of a block.
const BLOCK: usize = 64 << 10;

/// The golden ratio, as a fraction of 2^64; odd, so that places stay apart.
const PLACE: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) fn digest(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<WORD>();
    let of_block = |(block, words): (usize, &[[u8; WORD]])| {
        let mixed = (block * BLOCK..)
            .zip(words)
            .map(|(place, &word)| mix(place, word));
        mixed.fold(0, u64::wrapping_add)
    };
    let blocks = words.par_chunks(BLOCK).enumerate();
    let sum = blocks.map(of_block).reduce(|| 0, u64::wrapping_add);
    if rest.is_empty() {
        return sum;
    }
    let mut last = [0; WORD];
    last[..rest.len()].copy_from_slice(rest);
    sum.wrapping_add(mix(words.len(), last))
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood, 2014, with the constants of Stafford's 13th
/// variant), of a word and its place.
fn mix(place: usize, word: [u8; WORD]) -> u64 {
    let mut x = u64::from_le_bytes(word) ^ (place as u64 + 1).wrapping_mul(PLACE);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
