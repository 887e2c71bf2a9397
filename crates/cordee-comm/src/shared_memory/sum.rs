//! The sum of several copies of the same elements, in the order of ranks.

use std::{ops::Add, ptr};

use cordee_memory::{DType, Element};

/// Elements summed at once: the block and what is read for it stay in the first-level cache. The
/// result does not depend on it, since each element is summed on its own.
const BLOCK: usize = 2048;

/// Adds `len` elements at each of `sources`, the first plus the second plus the third and so on,
/// and writes the sums to each of `targets`.
///
/// # Safety
///
/// Sources and targets are aligned for `dtype` and valid for `len` elements of it. A target is one
/// of the sources or disjoint from all of them. Nobody else writes the sources or touches the
/// targets meanwhile, in any process.
pub(crate) unsafe fn sum_in_rank_order(
    dtype: DType,
    sources: &[*const u8],
    targets: &[*mut u8],
    len: usize,
) {
    // SAFETY: the caller's word.
    unsafe {
        match dtype {
            DType::Bf16 => sum::<half::bf16>(sources, targets, len),
            DType::F32 => sum::<f32>(sources, targets, len),
            DType::F64 => sum::<f64>(sources, targets, len),
        }
    }
}

/// # Safety
///
/// As [`sum_in_rank_order`].
unsafe fn sum<T: Element + Add<Output = T>>(
    sources: &[*const u8],
    targets: &[*mut u8],
    len: usize,
) {
    let Some((first, others)) = sources.split_first() else {
        return;
    };
    let mut block = [T::zeroed(); BLOCK];
    for start in (0..len).step_by(BLOCK) {
        let count = BLOCK.min(len - start);
        // Raw pointers and no slices: the memory belongs to other processes, and it is only for
        // the time between two meetings that they leave it alone.
        // SAFETY: `start + count` is at most `len`, for which sources and targets are valid; the
        // block is this function's own.
        unsafe {
            ptr::copy_nonoverlapping(first.cast::<T>().add(start), block.as_mut_ptr(), count);
            for source in others {
                let source = source.cast::<T>().add(start);
                for (index, sum) in block[..count].iter_mut().enumerate() {
                    *sum = *sum + source.add(index).read();
                }
            }
            for target in targets {
                ptr::copy_nonoverlapping(block.as_ptr(), target.cast::<T>().add(start), count);
            }
        }
    }
}
