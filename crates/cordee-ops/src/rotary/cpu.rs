//! Rotation of pairs.

use rayon::prelude::*;

use super::table::Waves;
use crate::{float::Float, matrix::unwritten, sequences::Sequences, simd::vectorised};

/// Tokens of a task.
const TOKENS: usize = 64;

/// `x` holds `heads` heads per token, each twice as wide as a row of `waves`.
pub(super) fn rotate<T: Float>(
    x: &[T],
    heads: usize,
    sequences: Sequences<'_>,
    waves: &Waves<T>,
    direction: T,
) -> Vec<T> {
    let half = waves.half;
    let width = heads * 2 * half;
    let mut y = unwritten(x.len());
    let blocks = y
        .par_chunks_mut(TOKENS * width)
        .zip(x.par_chunks(TOKENS * width));
    blocks.enumerate().for_each(|(block, (y, x))| {
        let first = block * TOKENS;
        let positions = sequences.positions(first..first + x.len() / width);
        let tokens = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for (position, (y, x)) in positions.zip(tokens) {
            let start = position * half;
            let cos = &waves.cos[start..start + half];
            let sin = &waves.sin[start..start + half];
            rotate_heads(x, [cos, sin], direction, y);
        }
    });
    y
}

vectorised! {
    /// Rotates the heads of one token.
    fn rotate_heads<T: Float>(x: &[T], angles: [&[T]; 2], direction: T, y: &mut [T]) {
        let [cos, sin] = angles;
        let head_dim = 2 * cos.len();
        for (y, x) in y.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
            let (first, second) = x.split_at(cos.len());
            let (y_first, y_second) = y.split_at_mut(cos.len());
            let pairs = first.iter().zip(second);
            let angles = cos.iter().zip(sin);
            let outputs = y_first.iter_mut().zip(y_second);
            for (((&a, &b), (&cos, &sin)), (y_a, y_b)) in pairs.zip(angles).zip(outputs) {
                let sin = sin * direction;
                *y_a = a * cos - b * sin;
                *y_b = b * cos + a * sin;
            }
        }
    }
}
