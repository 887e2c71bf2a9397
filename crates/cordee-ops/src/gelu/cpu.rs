//! Loops over elements.

use rayon::prelude::*;

use super::curve::Curve;
use crate::float::Float;

/// Elements of a task.
const BLOCK: usize = 16 * 1024;

pub(super) fn forward<T: Float, C: Curve>(x: &[T]) -> Vec<T> {
    let mut y = vec![T::ZERO; x.len()];
    y.par_chunks_mut(BLOCK)
        .zip(x.par_chunks(BLOCK))
        .for_each(|(y, x)| {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = C::value(x);
            }
        });
    y
}

pub(super) fn backward<T: Float, C: Curve>(dy: &[T], x: &[T]) -> Vec<T> {
    let mut dx = vec![T::ZERO; x.len()];
    let inputs = dy.par_chunks(BLOCK).zip(x.par_chunks(BLOCK));
    dx.par_chunks_mut(BLOCK)
        .zip(inputs)
        .for_each(|(dx, (dy, x))| {
            for (dx, (&dy, &x)) in dx.iter_mut().zip(dy.iter().zip(x)) {
                *dx = dy * C::value_and_slope(x).1;
            }
        });
    dx
}
