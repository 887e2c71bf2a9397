//! Rows in blocks; sums of a row in `f64`.

use rayon::prelude::*;

use crate::{elements, float::Float, matrix::unwritten, reduce, simd::vectorised};

/// Rows of a task; also the block in which the gains' gradient is summed, so it never changes.
const ROWS: usize = 32;

/// The gains as they are stored, and what is added to them.
#[derive(Clone, Copy)]
pub(super) struct Gains<'a, T> {
    pub(super) weight: &'a [T],
    pub(super) offset: T,
}

pub(super) fn forward<T: Float>(x: &[T], gains: Gains<'_, T>, eps: f64) -> (Vec<T>, Vec<T>) {
    let dim = gains.weight.len();
    let mut y = unwritten(x.len());
    let mut rstd = unwritten(x.len() / dim);
    y.par_chunks_mut(ROWS * dim)
        .zip(rstd.par_chunks_mut(ROWS))
        .zip(x.par_chunks(ROWS * dim))
        .for_each(|((y, rstd), x)| {
            normalise(x, gains, eps, y, rstd);
        });
    (y, rstd)
}

pub(super) fn forward_residual<T: Float>(
    x: &[T],
    residual: &[T],
    gains: Gains<'_, T>,
    eps: f64,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let dim = gains.weight.len();
    let mut sum = unwritten(x.len());
    let mut y = unwritten(x.len());
    let mut rstd = unwritten(x.len() / dim);
    let inputs = x
        .par_chunks(ROWS * dim)
        .zip(residual.par_chunks(ROWS * dim));
    sum.par_chunks_mut(ROWS * dim)
        .zip(y.par_chunks_mut(ROWS * dim))
        .zip(rstd.par_chunks_mut(ROWS))
        .zip(inputs)
        .for_each(|(((sum, y), rstd), (x, residual))| {
            elements::add(sum, x, residual);
            normalise(sum, gains, eps, y, rstd);
        });
    (sum, y, rstd)
}

vectorised! {
    /// Normalises rows and gives the reciprocal of each one's root mean square.
    fn normalise<T: Float>(x: &[T], gains: Gains<'_, T>, eps: f64, y: &mut [T], rstd: &mut [T]) {
        let dim = gains.weight.len();
        let rows = y.chunks_exact_mut(dim).zip(x.chunks_exact(dim));
        for ((y, x), rstd) in rows.zip(rstd) {
            let mean_square = reduce::dot(x, x) / dim as f64;
            *rstd = T::of(1.0 / (mean_square + eps).sqrt());
            for ((y, &x), &weight) in y.iter_mut().zip(x).zip(gains.weight) {
                *y = x * *rstd * (weight + gains.offset);
            }
        }
    }
}

/// What the backward reads.
pub(super) struct Rows<'a, T> {
    pub(super) dy: &'a [T],
    pub(super) x: &'a [T],
    pub(super) gains: Gains<'a, T>,
    pub(super) rstd: &'a [T],
    pub(super) residual: Option<&'a [T]>,
}

/// Returns dx, and adds to `dweight`: partial sums over blocks of rows, added in their order.
pub(super) fn backward<T: Float>(rows: &Rows<'_, T>, dweight: &mut [T]) -> Vec<T> {
    let dim = rows.gains.weight.len();
    let mut dx = unwritten(rows.x.len());
    let partial_sums: Vec<Vec<T>> = dx
        .par_chunks_mut(ROWS * dim)
        .enumerate()
        .map(|(block, dx)| {
            let mut partial = vec![T::ZERO; dim];
            backward_rows(rows, block * ROWS, dx, &mut partial);
            partial
        })
        .collect();
    // Thousands of partial sums, added one by one to an f32, would lose digits.
    let mut sums = vec![0.0; dim];
    for partial in &partial_sums {
        for (sum, &partial) in sums.iter_mut().zip(partial) {
            *sum += partial.to_f64();
        }
    }
    for (dweight, sum) in dweight.iter_mut().zip(sums) {
        *dweight += T::of(sum);
    }
    dx
}

vectorised! {
    /// The rows from `first` on. With g = dy * gain: dx = rstd * (g - x * rstd^2 * mean(g * x)),
    /// dweight += dy * x * rstd.
    fn backward_rows<T: Float>(rows: &Rows<'_, T>, first: usize, dx: &mut [T], dweight: &mut [T]) {
        let dim = dweight.len();
        for (row, dx) in (first..).zip(dx.chunks_exact_mut(dim)) {
            let range = row * dim..(row + 1) * dim;
            let (dy, x) = (&rows.dy[range.clone()], &rows.x[range.clone()]);
            let rstd = rows.rstd[row];
            for ((dx, &dy), &weight) in dx.iter_mut().zip(dy).zip(rows.gains.weight) {
                *dx = dy * (weight + rows.gains.offset);
            }
            let mean = reduce::dot(dx, x) / dim as f64;
            let slope = rstd * rstd * T::of(mean);
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = rstd * (*dx - x * slope);
            }
            for ((dweight, &dy), &x) in dweight.iter_mut().zip(dy).zip(x) {
                *dweight += dy * (x * rstd);
            }
            if let Some(residual) = rows.residual {
                for (dx, &residual) in dx.iter_mut().zip(&residual[range]) {
                    *dx += residual;
                }
            }
        }
    }
}
