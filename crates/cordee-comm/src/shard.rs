//! Which part of a range belongs to which rank.

use std::ops::Range;

/// Shards begin and end at multiples of this many elements, so that no two ranks write to one
/// cache line and vector loads stay aligned.
const SHARD_ALIGNMENT: usize = 64;

/// The part of `range` that rank `rank` of `world_size` owns. The shards are contiguous, in the order of
/// ranks, and cover the range; their boundaries inside it are multiples of 64 elements of the
/// buffer, and they differ by at most 64 whole elements. In a short range the last ranks own nothing.
///
/// # Panics
///
/// When `rank` is not less than `world_size`.
pub fn shard_range(range: Range<usize>, world_size: usize, rank: usize) -> Range<usize> {
    assert!(rank < world_size, "rank {rank} is not one of {world_size}");
    let first = range.start / SHARD_ALIGNMENT;
    let blocks = range.end.div_ceil(SHARD_ALIGNMENT).saturating_sub(first);
    let (each, longer) = (blocks / world_size, blocks % world_size);
    let boundary = |rank: usize| {
        let block = first + rank * each + rank.min(longer);
        block
            .saturating_mul(SHARD_ALIGNMENT)
            .clamp(range.start, range.end.max(range.start))
    };
    boundary(rank)..boundary(rank + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shards_cover_the_range_in_order(start in 0_usize..1000, len in 0_usize..100_000, world_size in 1_usize..20) {
            let range = start..start + len;
            let shards: Vec<_> = (0..world_size).map(|rank| shard_range(range.clone(), world_size, rank)).collect();
            prop_assert_eq!(shards[0].start, range.start);
            prop_assert_eq!(shards[world_size - 1].end, range.end);
            for pair in shards.windows(2) {
                prop_assert_eq!(pair[0].end, pair[1].start);
                let inner = pair[0].end;
                prop_assert!(inner == range.start || inner == range.end || inner % SHARD_ALIGNMENT == 0);
            }
        }

        #[test]
        fn aligned_ranges_are_balanced(start in 0_usize..100, blocks in 0_usize..2000, world_size in 1_usize..20) {
            let range = start * 64..(start + blocks) * 64;
            let lens: Vec<_> =
                (0..world_size).map(|rank| shard_range(range.clone(), world_size, rank).len()).collect();
            let (least, most) = (lens.iter().min().unwrap(), lens.iter().max().unwrap());
            prop_assert!(most - least <= 64);
        }
    }

    #[test]
    fn one_rank_owns_everything() {
        assert_eq!(shard_range(3..1001, 1, 0), 3..1001);
        assert_eq!(shard_range(5..5, 4, 2), 5..5);
        assert_eq!(shard_range(0..10, 4, 0), 0..10);
        assert!(shard_range(0..10, 4, 1).is_empty());
    }
}
