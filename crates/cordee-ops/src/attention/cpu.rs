//! The forward: blocks of queries against all keys they may see.

use rayon::prelude::*;

use super::Sizes;
use crate::{
    float::Float,
    matrix::{Matrix, MatrixMut, Write, product},
    reduce,
};

/// Queries of a block. Scores of a block are the only memory that grows with the length.
pub(super) const QUERIES: usize = 64;

/// Inputs of one call.
pub(super) struct Heads<'a, T> {
    pub(super) q: &'a [T],
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
    pub(super) scale: T,
    pub(super) sizes: Sizes,
}

/// The `[len, head_dim]` matrix of one head of one row in a `[rows, len, heads, head_dim]` tensor.
pub(super) fn head_matrix<'a, T: Float>(
    data: &'a [T],
    sizes: &Sizes,
    heads: usize,
    row: usize,
    head: usize,
) -> Matrix<'a, T> {
    let stride = heads * sizes.head_dim;
    let start = row * sizes.len * stride + head * sizes.head_dim;
    Matrix::strided(&data[start..], sizes.len, sizes.head_dim, stride)
}

/// The output, `[rows, len, heads, head_dim]`, and the log-sum-exp, `[rows, heads, len]`.
pub(super) fn forward<T: Float>(inputs: &Heads<'_, T>) -> (Vec<T>, Vec<T>) {
    let sizes = inputs.sizes;
    let width = sizes.heads * sizes.head_dim;
    let mut out = vec![T::ZERO; sizes.rows * sizes.len * width];
    let mut lse = vec![T::ZERO; sizes.rows * sizes.heads * sizes.len];
    let tasks: Vec<_> = MatrixMut::new(&mut out, sizes.rows * sizes.len, width)
        .split_rows(sizes.len)
        .into_iter()
        .flat_map(|row| row.split_columns(sizes.head_dim))
        .zip(lse.chunks_exact_mut(sizes.len))
        .collect();
    tasks
        .into_par_iter()
        .enumerate()
        .for_each(|(task, (out, lse))| {
            forward_head(inputs, task / sizes.heads, task % sizes.heads, out, lse);
        });
    (out, lse)
}

fn forward_head<T: Float>(
    inputs: &Heads<'_, T>,
    row: usize,
    head: usize,
    mut out: MatrixMut<'_, T>,
    lse: &mut [T],
) {
    let sizes = &inputs.sizes;
    let q = head_matrix(inputs.q, sizes, sizes.heads, row, head);
    let k = head_matrix(inputs.k, sizes, sizes.kv_heads, row, head / sizes.group());
    let v = head_matrix(inputs.v, sizes, sizes.kv_heads, row, head / sizes.group());
    let mut scores = vec![T::ZERO; QUERIES.min(sizes.len) * sizes.len];
    for start in (0..sizes.len).step_by(QUERIES) {
        let end = (start + QUERIES).min(sizes.len);
        let scores = &mut scores[..(end - start) * end];
        product(
            &mut MatrixMut::new(scores, end - start, end),
            Write::Replace,
            inputs.scale,
            q.rows(start..end),
            k.rows(0..end).transposed(),
        );
        let mut inverse_sums = [T::ZERO; QUERIES];
        let rows = scores
            .chunks_exact_mut(end)
            .zip(&mut inverse_sums)
            .zip(&mut lse[start..end]);
        for (query, ((scores, inverse_sum), lse)) in (start..).zip(rows) {
            let (largest, sum) = exponentials(scores, query + 1);
            *inverse_sum = T::of(1.0 / sum);
            *lse = T::of(largest.wide() + sum.ln());
        }
        let mut out = out.window(start..end, 0..sizes.head_dim);
        let probabilities = Matrix::new(scores, end - start, end);
        product(
            &mut out,
            Write::Replace,
            T::ONE,
            probabilities,
            v.rows(0..end),
        );
        for (query, &inverse_sum) in inverse_sums[..end - start].iter().enumerate() {
            for out in out.row(query) {
                *out *= inverse_sum;
            }
        }
    }
}

/// Replaces the first `visible` scores by their exponentials, after the largest is subtracted, and
/// the others by 0. Returns the largest score and the sum of the exponentials.
fn exponentials<T: Float>(scores: &mut [T], visible: usize) -> (T, f64) {
    let (seen, hidden) = scores.split_at_mut(visible);
    let largest = reduce::max(seen);
    for score in &mut *seen {
        *score = (*score - largest).exp();
    }
    hidden.fill(T::ZERO);
    (largest, reduce::sum(seen))
}
