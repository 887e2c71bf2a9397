//! Values that every rank can compute for every other, and their sum in the order of ranks.

use cordee_memory::Element;

/// What the bodies need of an element.
pub(crate) trait Number:
    Element + std::ops::Add<Output = Self> + PartialEq + std::fmt::Debug
{
    /// Rounded from a double.
    fn of(value: f64) -> Self;
    /// To compare bit by bit.
    fn bits(self) -> u64;
}

impl Number for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Number for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

const SCALES: [f64; 13] = [
    1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6,
];

/// The value of `rank` at `index`: signs and magnitudes over twelve orders, so that another order
/// of additions gives other bits.
pub(crate) fn value<T: Number>(rank: usize, index: usize) -> T {
    let mut bits = (rank as u64) << 48 ^ index as u64;
    // splitmix64, https://prng.di.unimi.it/splitmix64.c
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    T::of(((bits >> 11) as f64 / (1_u64 << 53) as f64 - 0.5) * SCALES[(bits % 13) as usize])
}

/// Rank 0 plus rank 1 plus rank 2 and so on.
pub(crate) fn sum<T: Number>(world_size: usize, index: usize) -> T {
    (1..world_size).fold(value(0, index), |sum, rank| sum + value(rank, index))
}

/// Fails at the first element whose bits are not those of `expected`.
#[track_caller]
pub(crate) fn assert_bits<T: Number>(
    found: &[T],
    first_index: usize,
    expected: impl Fn(usize) -> T,
) {
    for (offset, &found) in found.iter().enumerate() {
        let index = first_index + offset;
        let expected = expected(index);
        assert!(
            found.bits() == expected.bits(),
            "element {index}: {found:?} where {expected:?} is expected"
        );
    }
}
