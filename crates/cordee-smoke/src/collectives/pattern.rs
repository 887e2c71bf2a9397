//! Numbers to exchange whose sums are exact in every type, and that are not the same anywhere else.

use std::ops::Range;

use cordee_memory::{Buffer, DType, Element};
use half::bf16;

use crate::Result;

/// Elements after which the numbers begin anew: a prime, so that memory that arrives displaced by a
/// page, a shard or any other power of two is seen.
const PERIOD: usize = 8191;

/// Whole numbers up to this are exact in bf16, and so is every order of adding to it.
const EXACT: u64 = 256;

/// What each rank gives, and what the sum over ranks is.
pub(super) enum Pattern {
    Bf16(Tables<bf16>),
    F32(Tables<f32>),
    F64(Tables<f64>),
}

/// The numbers of one period.
pub(super) struct Tables<T> {
    ranks: Vec<Vec<T>>,
    sum: Vec<T>,
}

impl Pattern {
    pub(super) fn new(dtype: DType, world_size: usize) -> Self {
        match dtype {
            DType::Bf16 => Self::Bf16(Tables::new(world_size, |it| bf16::from_f32(it as f32))),
            DType::F32 => Self::F32(Tables::new(world_size, |it| it as f32)),
            DType::F64 => Self::F64(Tables::new(world_size, |it| it as f64)),
        }
    }

    /// Writes what `rank` gives.
    pub(super) fn fill(&self, buffer: &mut Buffer, range: Range<usize>, rank: usize) -> Result<()> {
        match self {
            Self::Bf16(tables) => fill(buffer, range, &tables.ranks[rank]),
            Self::F32(tables) => fill(buffer, range, &tables.ranks[rank]),
            Self::F64(tables) => fill(buffer, range, &tables.ranks[rank]),
        }
    }

    /// How many elements are not what `rank` gave.
    pub(super) fn count_other_than(
        &self,
        buffer: &Buffer,
        range: Range<usize>,
        rank: usize,
    ) -> Result<usize> {
        match self {
            Self::Bf16(tables) => count(buffer, range, &tables.ranks[rank]),
            Self::F32(tables) => count(buffer, range, &tables.ranks[rank]),
            Self::F64(tables) => count(buffer, range, &tables.ranks[rank]),
        }
    }

    /// How many elements are not the sum of what all ranks gave.
    pub(super) fn count_other_than_sum(
        &self,
        buffer: &Buffer,
        range: Range<usize>,
    ) -> Result<usize> {
        match self {
            Self::Bf16(tables) => count(buffer, range, &tables.sum),
            Self::F32(tables) => count(buffer, range, &tables.sum),
            Self::F64(tables) => count(buffer, range, &tables.sum),
        }
    }
}

impl<T> Tables<T> {
    fn new(world_size: usize, element: impl Fn(u64) -> T) -> Self {
        let mut sums = vec![0_u64; PERIOD];
        let ranks = (0..world_size).map(|rank| {
            let numbers = sums.iter_mut().enumerate().map(|(index, sum)| {
                let number = number(index, rank, world_size).min(EXACT - *sum);
                *sum += number;
                element(number)
            });
            numbers.collect()
        });
        let ranks = ranks.collect();
        let sum = sums.into_iter().map(element).collect();
        Self { ranks, sum }
    }
}

/// From 0 to 3; mostly 0 where there are so many ranks that sums would become large.
fn number(index: usize, rank: usize, world_size: usize) -> u64 {
    // The finalizer of splitmix64.
    let mut bits = ((rank as u64) << 32 | index as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let drawn = bits % (4 * world_size.div_ceil(64) as u64);
    if drawn < 4 { drawn } else { 0 }
}

/// Element `i` of the buffer is element `i` of the repeated table, wherever the range begins.
fn fill<T: Element>(buffer: &mut Buffer, range: Range<usize>, table: &[T]) -> Result<()> {
    let mut index = range.start;
    let mut rest = &mut buffer.as_mut_slice::<T>()?[range];
    while !rest.is_empty() {
        let from = &table[index % PERIOD..];
        let (part, after) = rest.split_at_mut(from.len().min(rest.len()));
        part.copy_from_slice(&from[..part.len()]);
        index += part.len();
        rest = after;
    }
    Ok(())
}

fn count<T: Element + PartialEq>(
    buffer: &Buffer,
    range: Range<usize>,
    table: &[T],
) -> Result<usize> {
    let mut index = range.start;
    let mut rest = &buffer.as_slice::<T>()?[range];
    let mut wrong = 0;
    while !rest.is_empty() {
        let expected = &table[index % PERIOD..];
        let (part, after) = rest.split_at(expected.len().min(rest.len()));
        // Counted by u32, which as many vector lanes hold as there are elements.
        let differs = part
            .iter()
            .zip(expected)
            .map(|(found, expected)| u32::from(found != expected));
        wrong += differs.sum::<u32>() as usize;
        index += part.len();
        rest = after;
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_in_bf16_in_any_order() {
        for world_size in [1, 2, 4, 64, 65, 1024] {
            let tables = Tables::new(world_size, |it| it);
            for index in 0..PERIOD {
                let gives = tables.ranks.iter().map(|numbers| numbers[index]);
                assert_eq!(tables.sum[index], gives.sum::<u64>());
                assert!(tables.sum[index] <= EXACT);
            }
            assert!(tables.sum.iter().any(|sum| *sum > 0));
        }
    }

    #[test]
    fn a_displaced_pattern_differs_in_most_elements() {
        let pattern = Pattern::new(DType::F32, 2);
        let mut buffer = Buffer::zeroed(DType::F32, 40_000).unwrap();
        pattern.fill(&mut buffer, 0..40_000, 1).unwrap();
        let differing =
            |buffer: &Buffer, range, rank| pattern.count_other_than(buffer, range, rank).unwrap();
        assert_eq!(differing(&buffer, 0..40_000, 1), 0);
        assert_eq!(differing(&buffer, 9_000..9_001, 1), 0);
        assert!(differing(&buffer, 0..40_000, 0) > 25_000);
        let elements = buffer.as_mut_slice::<f32>().unwrap();
        elements.copy_within(0..1024, 16_384);
        elements[39_999] = f32::NAN;
        let displaced = differing(&buffer, 0..40_000, 1);
        assert!((600..=1025).contains(&displaced), "{displaced}");
    }
}
