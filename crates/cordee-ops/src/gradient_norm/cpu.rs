//! Blocks over threads, combined in their order.

use rayon::prelude::*;

use crate::{float::Float, simd::vectorised};

/// Elements of a block.
const BLOCK: usize = 16 * 1024;

/// Independent sums inside a block.
const LANES: usize = 32;

pub(super) fn sum_of_squares<T: Float>(values: &[T]) -> f64 {
    let sums: Vec<f64> = values.par_chunks(BLOCK).map(block_sum).collect();
    sums.iter().sum()
}

vectorised! {
    /// Squares are taken in `f64`: those of large `f32` gradients overflow before their norm does.
    fn block_sum<T: Float>(values: &[T]) -> f64 {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                let value = value.wide();
                *lane += value * value;
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            let value = value.wide();
            *lane += value * value;
        }
        lanes.iter().sum()
    }
}

pub(super) fn first_non_finite<T: Float>(values: &[T]) -> Option<usize> {
    let suspect = |block: &[T]| {
        !block
            .iter()
            .fold(true, |finite, value| finite & value.is_finite())
    };
    let block = values.par_chunks(BLOCK).position_first(suspect)?;
    let start = block * BLOCK;
    let offset = values[start..]
        .iter()
        .position(|value| !value.is_finite())?;
    Some(start + offset)
}
