//! The backward: the forward's blocks again, with probabilities from the log-sum-exp.
//!
//! With P the probabilities and D = rowsum(dout * out):
//! dV += P^T dout, dS = P * (dout V^T - D) * scale, dQ = dS K, dK += dS^T Q.

use std::ops::Range;

use rayon::prelude::*;

use super::cpu::{Heads, QUERIES, head_matrix};
use crate::{
    float::Float,
    matrix::{Matrix, MatrixMut, Write, product},
    reduce,
};

/// What comes from the forward, and the gradient of its output.
pub(super) struct Saved<'a, T> {
    pub(super) dout: &'a [T],
    pub(super) out: &'a [T],
    pub(super) lse: &'a [T],
}

/// Scores of a block of queries, and their gradients.
struct Scratch<T> {
    probabilities: Vec<T>,
    gradients: Vec<T>,
}

/// dq, dk and dv. A task has one key head of one row, with all the query heads that read it: what
/// they add to dk and dv has one order.
pub(super) fn backward<T: Float>(inputs: &Heads<'_, T>, saved: &Saved<'_, T>) -> [Vec<T>; 3] {
    let sizes = inputs.sizes;
    let mut dq = vec![T::ZERO; inputs.q.len()];
    let mut dk = vec![T::ZERO; inputs.k.len()];
    let mut dv = vec![T::ZERO; inputs.v.len()];
    let bands: Vec<_> = bands(inputs, &mut dq, sizes.heads, sizes.group())
        .zip(bands(inputs, &mut dk, sizes.kv_heads, 1))
        .zip(bands(inputs, &mut dv, sizes.kv_heads, 1))
        .collect();
    bands
        .into_par_iter()
        .enumerate()
        .for_each(|(task, ((mut dq, mut dk), mut dv))| {
            let (row, kv_head) = (task / sizes.kv_heads, task % sizes.kv_heads);
            let block = QUERIES.min(sizes.len) * sizes.len;
            let mut scratch = Scratch {
                probabilities: vec![T::ZERO; block],
                gradients: vec![T::ZERO; block],
            };
            for member in 0..sizes.group() {
                let head = Head::new(inputs, saved, row, kv_head * sizes.group() + member);
                let columns = member * sizes.head_dim..(member + 1) * sizes.head_dim;
                for start in (0..sizes.len).step_by(QUERIES) {
                    let queries = start..(start + QUERIES).min(sizes.len);
                    let mut dq = dq.window(queries.clone(), columns.clone());
                    head.backward_block(queries, &mut dq, &mut dk, &mut dv, &mut scratch);
                }
            }
        });
    [dq, dk, dv]
}

/// Splits a `[rows, len, heads, head_dim]` gradient into matrices of `width` neighbouring heads of
/// one row.
fn bands<'a, T: Float>(
    inputs: &Heads<'_, T>,
    gradient: &'a mut [T],
    heads: usize,
    width: usize,
) -> impl Iterator<Item = MatrixMut<'a, T>> {
    let sizes = inputs.sizes;
    MatrixMut::new(gradient, sizes.rows * sizes.len, heads * sizes.head_dim)
        .split_rows(sizes.len)
        .into_iter()
        .flat_map(move |row| row.split_columns(width * sizes.head_dim))
}

/// One query head of one row: matrices `[len, head_dim]`.
struct Head<'a, T> {
    q: Matrix<'a, T>,
    k: Matrix<'a, T>,
    v: Matrix<'a, T>,
    dout: Matrix<'a, T>,
    out: Matrix<'a, T>,
    lse: &'a [T],
    scale: T,
    width: usize,
}

impl<'a, T: Float> Head<'a, T> {
    fn new(inputs: &Heads<'a, T>, saved: &Saved<'a, T>, row: usize, head: usize) -> Self {
        let sizes = &inputs.sizes;
        let queries = |data| head_matrix(data, sizes, sizes.heads, row, head);
        let keys = |data| head_matrix(data, sizes, sizes.kv_heads, row, head / sizes.group());
        Self {
            q: queries(inputs.q),
            k: keys(inputs.k),
            v: keys(inputs.v),
            dout: queries(saved.dout),
            out: queries(saved.out),
            lse: &saved.lse[(row * sizes.heads + head) * sizes.len..][..sizes.len],
            scale: inputs.scale,
            width: sizes.head_dim,
        }
    }

    /// The part of some queries: writes their `dq`, adds to `dk` and `dv`.
    fn backward_block(
        &self,
        queries: Range<usize>,
        dq: &mut MatrixMut<'_, T>,
        dk: &mut MatrixMut<'_, T>,
        dv: &mut MatrixMut<'_, T>,
        scratch: &mut Scratch<T>,
    ) {
        let (count, end) = (queries.len(), queries.end);
        let (k, v) = (self.k.rows(0..end), self.v.rows(0..end));
        let (q, dout) = (
            self.q.rows(queries.clone()),
            self.dout.rows(queries.clone()),
        );
        let probabilities = &mut scratch.probabilities[..count * end];
        let gradients = &mut scratch.gradients[..count * end];

        let mut scores = MatrixMut::new(probabilities, count, end);
        product(&mut scores, Write::Replace, self.scale, q, k.transposed());
        let mut dprobabilities = MatrixMut::new(gradients, count, end);
        product(
            &mut dprobabilities,
            Write::Replace,
            T::ONE,
            dout,
            v.transposed(),
        );

        let rows = probabilities
            .chunks_exact_mut(end)
            .zip(gradients.chunks_exact_mut(end));
        for (query, (scores, gradients)) in queries.clone().zip(rows) {
            let (lse, visible) = (self.lse[query], query + 1);
            let mean = T::of(reduce::dot(self.dout.row(query), self.out.row(query)));
            for (score, gradient) in scores.iter_mut().zip(&mut *gradients).take(visible) {
                *score = (*score - lse).exp();
                *gradient = *score * (*gradient - mean) * self.scale;
            }
            scores[visible..].fill(T::ZERO);
            gradients[visible..].fill(T::ZERO);
        }

        let probabilities = Matrix::new(probabilities, count, end);
        let gradients = Matrix::new(gradients, count, end);
        let columns = 0..self.width;
        let mut dv = dv.window(0..end, columns.clone());
        product(
            &mut dv,
            Write::Add,
            T::ONE,
            probabilities.transposed(),
            dout,
        );
        let mut dk = dk.window(0..end, columns);
        product(&mut dk, Write::Add, T::ONE, gradients.transposed(), q);
        product(dq, Write::Replace, T::ONE, gradients, k);
    }
}
