//! Loops over elements.

use rayon::prelude::*;

use super::curve::Curve;
use crate::{elements::BLOCK, float::Float, matrix::unwritten, simd::vectorised};

pub(super) fn forward<T: Float, C: Curve>(x: &[T]) -> Vec<T> {
    let mut y = unwritten(x.len());
    y.par_chunks_mut(BLOCK)
        .zip(x.par_chunks(BLOCK))
        .for_each(|(y, x)| forward_block::<T, C>(y, x));
    y
}

pub(super) fn backward<T: Float, C: Curve>(dy: &[T], x: &[T]) -> Vec<T> {
    let mut dx = unwritten(x.len());
    let inputs = dy.par_chunks(BLOCK).zip(x.par_chunks(BLOCK));
    dx.par_chunks_mut(BLOCK)
        .zip(inputs)
        .for_each(|(dx, (dy, x))| backward_block::<T, C>(dx, dy, x));
    dx
}

vectorised! {
    fn forward_block<T: Float, C: Curve>(y: &mut [T], x: &[T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = C::value(x);
        }
    }

    fn backward_block<T: Float, C: Curve>(dx: &mut [T], dy: &[T], x: &[T]) {
        for (dx, (&dy, &x)) in dx.iter_mut().zip(dy.iter().zip(x)) {
            *dx = dy * C::value_and_slope(x).1;
        }
    }
}
