//! Rows in blocks; sums of a row in `f64`.

use rayon::prelude::*;

use crate::{float::Float, reduce};

/// Rows of a task; also the block in which the parameters' gradients are summed, so it never
/// changes.
const ROWS: usize = 32;

/// Elements of a task of an addition.
const ELEMENTS: usize = 16 * 1024;

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

pub(super) fn add<T: Float>(x: &[T], residual: &[T]) -> Vec<T> {
    let mut sum = vec![T::ZERO; x.len()];
    let inputs = x.par_chunks(ELEMENTS).zip(residual.par_chunks(ELEMENTS));
    sum.par_chunks_mut(ELEMENTS)
        .zip(inputs)
        .for_each(|(sum, (x, residual))| {
            for (sum, (&x, &residual)) in sum.iter_mut().zip(x.iter().zip(residual)) {
                *sum = x + residual;
            }
        });
    sum
}

pub(super) fn forward<T: Float>(x: &[T], affine: Affine<'_, T>) -> Forward<T> {
    let dim = affine.weight.len();
    let mut y = vec![T::ZERO; x.len()];
    let mut mean = vec![T::ZERO; x.len() / dim];
    let mut rstd = vec![T::ZERO; x.len() / dim];
    let statistics = mean.par_chunks_mut(ROWS).zip(rstd.par_chunks_mut(ROWS));
    y.par_chunks_mut(ROWS * dim)
        .zip(x.par_chunks(ROWS * dim))
        .zip(statistics)
        .for_each(|((y, x), (mean, rstd))| {
            let rows = y.chunks_exact_mut(dim).zip(x.chunks_exact(dim));
            for ((y, x), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
                (*mean, *rstd) = normalise(x, affine, y);
            }
        });
    Forward { y, mean, rstd }
}

/// Normalises one row and returns its mean and the reciprocal of its standard deviation. The
/// variance is taken of the differences from the mean, which does not cancel as the difference of
/// squares would.
fn normalise<T: Float>(x: &[T], affine: Affine<'_, T>, y: &mut [T]) -> (T, T) {
    let mean = T::of(reduce::sum(x) / x.len() as f64);
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x - mean;
    }
    let variance = reduce::dot(y, y) / x.len() as f64;
    let rstd = T::of(1.0 / (variance + affine.eps).sqrt());
    for ((y, &weight), &bias) in y.iter_mut().zip(affine.weight).zip(affine.bias) {
        *y = *y * rstd * weight + bias;
    }
    (mean, rstd)
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
    let mut dx = vec![T::ZERO; rows.x.len()];
    let partial_sums: Vec<[Vec<T>; 2]> = dx
        .par_chunks_mut(ROWS * dim)
        .enumerate()
        .map(|(block, dx)| {
            let mut partial = [vec![T::ZERO; dim], vec![T::ZERO; dim]];
            for (row, dx) in (block * ROWS..).zip(dx.chunks_exact_mut(dim)) {
                backward_row(rows, row, dx, &mut partial);
            }
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

/// With h = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - h * mean(g * h)),
/// dweight += dy * h, dbias += dy.
fn backward_row<T: Float>(rows: &Rows<'_, T>, row: usize, dx: &mut [T], partial: &mut [Vec<T>; 2]) {
    let dim = dx.len();
    let range = row * dim..(row + 1) * dim;
    let (dy, x) = (&rows.dy[range.clone()], &rows.x[range.clone()]);
    let (mean, rstd) = (rows.mean[row], rows.rstd[row]);
    let (mut sum, mut product) = (0.0, 0.0);
    for ((&dy, &x), &weight) in dy.iter().zip(x).zip(rows.weight) {
        let g = dy * weight;
        sum += g.wide();
        product += (g * ((x - mean) * rstd)).wide();
    }
    let (sum, product) = (T::of(sum / dim as f64), T::of(product / dim as f64));
    for (((dx, &dy), &x), &weight) in dx.iter_mut().zip(dy).zip(x).zip(rows.weight) {
        *dx = rstd * (dy * weight - sum - (x - mean) * rstd * product);
    }
    let [dweight, dbias] = partial;
    for (((dweight, dbias), &dy), &x) in dweight.iter_mut().zip(dbias).zip(dy).zip(x) {
        *dweight += dy * ((x - mean) * rstd);
        *dbias += dy;
    }
    if let Some(residual) = rows.residual {
        for (dx, &residual) in dx.iter_mut().zip(&residual[range]) {
            *dx += residual;
        }
    }
}
