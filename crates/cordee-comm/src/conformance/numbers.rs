//! Values that every rank can compute for every other.

use cordee_memory::Element;

/// What the cases need of an element.
pub(super) trait Number:
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

impl Number for half::bf16 {
    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

const SCALES: [f64; 13] = [
    1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6,
];

/// The value of `rank` at `index`. Where sums have an order: signs and magnitudes over twelve orders, so
/// that another order of additions gives other bits. Else whole numbers from -8 to 8 without 0, which is
/// what fresh memory has: sums of up to 32 of them are exact in bf16.
pub(super) fn value<T: Number>(in_rank_order: bool, rank: usize, index: usize) -> T {
    let mut bits = (rank as u64) << 48 ^ index as u64;
    // splitmix64, https://prng.di.unimi.it/splitmix64.c
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    if in_rank_order {
        return T::of(
            ((bits >> 11) as f64 / (1_u64 << 53) as f64 - 0.5) * SCALES[(bits % 13) as usize],
        );
    }
    let magnitude = (bits % 8 + 1) as f64;
    T::of(if bits >> 63 == 1 {
        -magnitude
    } else {
        magnitude
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_sums_shows_where_there_is_one() {
        let sum = |in_rank_order, ranks: &[usize], index| {
            let values = ranks
                .iter()
                .map(|&rank| value::<f32>(in_rank_order, rank, index));
            values.reduce(|sum, value| sum + value).unwrap().to_bits()
        };
        let differing = |in_rank_order| {
            let forward = |index| sum(in_rank_order, &[0, 1, 2], index);
            let backward = |index| sum(in_rank_order, &[2, 1, 0], index);
            (0..1000)
                .filter(|&index| forward(index) != backward(index))
                .count()
        };
        assert!(differing(true) > 100);
        assert_eq!(differing(false), 0);
        assert!((0..1000).all(|index| value::<half::bf16>(false, 3, index).to_f64().abs() >= 1.0));
    }
}
