//! Rows in blocks; sums of a row in `f64`.

use rayon::prelude::*;

use crate::{float::Float, matrix::unwritten, reduce, simd::vectorised};

/// Rows of a task; also the block in which the parameters' gradients are summed, so it never
/// changes.
const ROWS: usize = 32;

/// What follows the normalisation, and what keeps it from dividing by 0.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a, T> {
    pub(super) weight: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) eps: f64,
}

/// What the forward returns.
pub(super) struct Forward<T> {
    pub(super) y: Vec<T>,
    pub(super) mean: Vec<T>,
    pub(super) rstd: Vec<T>,
}

pub(super) fn forward<T: Float>(x: &[T], affine: Affine<'_, T>) -> Forward<T> {
    let dim = affine.weight.len();
    let mut y = unwritten(x.len());
    let mut mean = unwritten(x.len() / dim);
    let mut rstd = unwritten(x.len() / dim);
    let statistics = mean.par_chunks_mut(ROWS).zip(rstd.par_chunks_mut(ROWS));
    y.par_chunks_mut(ROWS * dim)
        .zip(x.par_chunks(ROWS * dim))
        .zip(statistics)
        .for_each(|((y, x), (mean, rstd))| normalise(x, affine, y, [mean, rstd]));
    Forward { y, mean, rstd }
}

vectorised! {
    /// Normalises rows and gives each one's mean and the reciprocal of its standard deviation. The
    /// variance is taken of the differences from the mean, which does not cancel as the difference
    /// of squares would.
    fn normalise<T: Float>(
        x: &[T],
        affine: Affine<'_, T>,
        y: &mut [T],
        statistics: [&mut [T]; 2],
    ) {
        let dim = affine.weight.len();
        let [mean, rstd] = statistics;
        let rows = y.chunks_exact_mut(dim).zip(x.chunks_exact(dim));
        for ((y, x), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
            *mean = T::of(reduce::sum(x) / dim as f64);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x - *mean;
            }
            let variance = reduce::dot(y, y) / dim as f64;
            *rstd = T::of(1.0 / (variance + affine.eps).sqrt());
            for ((y, &weight), &bias) in y.iter_mut().zip(affine.weight).zip(affine.bias) {
                *y = *y * *rstd * weight + bias;
            }
        }
    }
}

/// What the backward reads.
pub(super) struct Rows<'a, T> {
    pub(super) dy: &'a [T],
    pub(super) x: &'a [T],
    pub(super) weight: &'a [T],
    pub(super) mean: &'a [T],
    pub(super) rstd: &'a [T],
    pub(super) residual: Option<&'a [T]>,
}

/// Returns dx, and adds to `dweight` and `dbias`: partial sums over blocks of rows, added in their
/// order.
pub(super) fn backward<T: Float>(rows: &Rows<'_, T>, dweight: &mut [T], dbias: &mut [T]) -> Vec<T> {
    let dim = rows.weight.len();
    let mut dx = unwritten(rows.x.len());
    let partial_sums: Vec<[Vec<T>; 2]> = dx
        .par_chunks_mut(ROWS * dim)
        .enumerate()
        .map(|(block, dx)| {
            let mut partial = [vec![T::ZERO; dim], vec![T::ZERO; dim]];
            backward_rows(rows, block * ROWS, dx, &mut partial);
            partial
        })
        .collect();
    for (index, gradient) in [dweight, dbias].into_iter().enumerate() {
        // Thousands of partial sums, added one by one to an f32, would lose digits.
        let mut sums = vec![0.0; dim];
        for partial in &partial_sums {
            for (sum, partial) in sums.iter_mut().zip(&partial[index]) {
                *sum += partial.wide();
            }
        }
        for (gradient, sum) in gradient.iter_mut().zip(sums) {
            *gradient += T::of(sum);
        }
    }
    dx
}

vectorised! {
    /// The rows from `first` on. With h = (x - mean) * rstd and g = dy * weight:
    /// dx = rstd * (g - mean(g) - h * mean(g * h)), dweight += dy * h, dbias += dy.
    fn backward_rows<T: Float>(
        rows: &Rows<'_, T>,
        first: usize,
        dx: &mut [T],
        partial: &mut [Vec<T>; 2],
    ) {
        let dim = rows.weight.len();
        let [dweight, dbias] = partial;
        for (row, dx) in (first..).zip(dx.chunks_exact_mut(dim)) {
            let range = row * dim..(row + 1) * dim;
            let (dy, x) = (&rows.dy[range.clone()], &rows.x[range.clone()]);
            let (mean, rstd) = (rows.mean[row], rows.rstd[row]);
            for ((dx, &dy), &weight) in dx.iter_mut().zip(dy).zip(rows.weight) {
                *dx = dy * weight;
            }
            let sum = reduce::sum(dx);
            // sum(g * h) = rstd * (sum(g * x) - mean * sum(g)) would cancel; the differences do not.
            let product = reduce::sum_of(dx, x, |g, x| g * ((x - mean) * rstd));
            let (sum, product) = (T::of(sum / dim as f64), T::of(product / dim as f64));
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = rstd * (*dx - sum - (x - mean) * rstd * product);
            }
            for (((dweight, dbias), &dy), &x) in dweight.iter_mut().zip(&mut *dbias).zip(dy).zip(x) {
                *dweight += dy * ((x - mean) * rstd);
                *dbias += dy;
            }
            if let Some(residual) = rows.residual {
                for (dx, &residual) in dx.iter_mut().zip(&residual[range]) {
                    *dx += residual;
                }
            }
        }
    }
}
