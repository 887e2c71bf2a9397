//! One word after the other.

/// The digest of `bytes`, whose last word is filled up with zeros.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let words = (1_u64..).zip(bytes.chunks(8)).map(|(number, bytes)| {
        let word = bytes
            .iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte));
        let mut mixed = word ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)] {
            mixed = (mixed ^ (mixed >> shift)).wrapping_mul(factor);
        }
        mixed ^ (mixed >> 31)
    });
    words.fold(0, u64::wrapping_add)
}
