//! The forward: blocks of queries against the keys they see.

use std::ops::Range;

use rayon::prelude::*;

use super::{Sees, Sizes};
use crate::{
    elements,
    float::Float,
    matrix::{Matrix, MatrixMut, Write, product, unwritten},
    reduce,
    simd::vectorised,
};

/// Most queries of a block. Scores of a block are the only memory that grows with the length.
const QUERIES: usize = 128;

/// Queries of a block in a sequence of `len` tokens: fewer in short ones, where the keys that some of
/// a block's queries do not see would be a good part of all.
pub(super) fn queries_of_block(len: usize) -> usize {
    if len < 8 * QUERIES {
        QUERIES / 2
    } else {
        QUERIES
    }
}

/// Inputs of one call.
pub(super) struct Heads<'a, T> {
    pub(super) q: &'a [T],
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
    pub(super) scale: T,
    pub(super) sizes: Sizes,
    pub(super) sees: Sees<'a>,
}

impl<T> Heads<'_, T> {
    /// Scores of the largest block of queries of a sequence of `len` tokens.
    pub(super) fn block(&self, len: usize) -> usize {
        let queries = queries_of_block(len).min(len);
        queries * len.min(self.sees.window.saturating_add(queries - 1))
    }
}

/// The `[len, head_dim]` matrix of one head of one sequence in a `[tokens, heads, head_dim]` tensor.
pub(super) fn head_matrix<'a, T: Float>(
    data: &'a [T],
    sizes: &Sizes,
    heads: usize,
    sequence: &Range<usize>,
    head: usize,
) -> Matrix<'a, T> {
    let stride = heads * sizes.head_dim;
    let start = sequence.start * stride + head * sizes.head_dim;
    Matrix::strided(&data[start..], sequence.len(), sizes.head_dim, stride)
}

/// What one query head of one sequence writes.
struct Task<'a, T> {
    sequence: Range<usize>,
    head: usize,
    out: MatrixMut<'a, T>,
    lse: &'a mut [T],
}

/// The output, `[tokens, heads, head_dim]`, and the log-sum-exp, `[heads, tokens]`.
pub(super) fn forward<T: Float>(inputs: &Heads<'_, T>) -> (Vec<T>, Vec<T>) {
    let sizes = inputs.sizes;
    let mut out = unwritten(inputs.q.len());
    let mut lse = unwritten(sizes.heads * sizes.tokens);
    tasks(inputs, &mut out, &mut lse)
        .into_par_iter()
        .for_each(|task| forward_task(inputs, task));
    (out, lse)
}

fn tasks<'a, T: Float>(
    inputs: &Heads<'a, T>,
    out: &'a mut [T],
    lse: &'a mut [T],
) -> Vec<Task<'a, T>> {
    let Sizes {
        tokens,
        heads,
        head_dim,
        ..
    } = inputs.sizes;
    let sequences = inputs.sees.sequences;
    // `max`: without tokens there is nothing to divide, but chunks of nothing are refused.
    let mut lse_of_heads: Vec<_> = lse
        .chunks_exact_mut(tokens.max(1))
        .map(|lse| sequences.split(lse, 1))
        .collect();
    let mut tasks = Vec::new();
    for (index, out) in sequences.split(out, heads * head_dim).enumerate() {
        let sequence = sequences.range(index);
        let columns = MatrixMut::new(out, sequence.len(), heads * head_dim).split_columns(head_dim);
        for (head, (out, lse)) in columns.into_iter().zip(&mut lse_of_heads).enumerate() {
            tasks.push(Task {
                sequence: sequence.clone(),
                head,
                out,
                lse: lse.next().expect("every head has every sequence"),
            });
        }
    }
    tasks
}

fn forward_task<T: Float>(inputs: &Heads<'_, T>, task: Task<'_, T>) {
    let Task {
        sequence,
        head,
        mut out,
        lse,
    } = task;
    let (sizes, len) = (&inputs.sizes, sequence.len());
    let kv_head = head / sizes.group();
    let q = head_matrix(inputs.q, sizes, sizes.heads, &sequence, head);
    let k = head_matrix(inputs.k, sizes, sizes.kv_heads, &sequence, kv_head);
    let v = head_matrix(inputs.v, sizes, sizes.kv_heads, &sequence, kv_head);
    let mut scores = unwritten(inputs.block(len));
    let count = queries_of_block(len);
    for start in (0..len).step_by(count) {
        let queries = start..(start + count).min(len);
        let keys = inputs.sees.keys_of_block(&queries);
        let scores = &mut scores[..queries.len() * keys.len()];
        product(
            &mut MatrixMut::new(scores, queries.len(), keys.len()),
            Write::Replace,
            inputs.scale,
            q.rows(queries.clone()),
            k.rows(keys.clone()).transposed(),
        );
        let mut inverse_sums = [T::ZERO; QUERIES];
        let rows = scores
            .chunks_exact_mut(keys.len())
            .zip(&mut inverse_sums)
            .zip(&mut lse[queries.clone()]);
        for (query, ((scores, inverse_sum), lse)) in queries.clone().zip(rows) {
            let seen = inputs.sees.keys(query);
            let seen = seen.start - keys.start..seen.end - keys.start;
            let (largest, sum) = exponentials(scores, seen);
            *inverse_sum = T::of(1.0 / sum);
            *lse = T::of(largest.wide() + sum.ln());
        }
        let mut out = out.window(queries.clone(), 0..sizes.head_dim);
        let probabilities = Matrix::new(scores, queries.len(), keys.len());
        product(
            &mut out,
            Write::Replace,
            T::ONE,
            probabilities,
            v.rows(keys),
        );
        for (query, &inverse_sum) in inverse_sums[..queries.len()].iter().enumerate() {
            elements::scale(out.row(query), inverse_sum);
        }
    }
}

vectorised! {
    /// Replaces the scores that are seen by their exponentials, after the largest is subtracted,
    /// and the others by 0. Returns the largest score and the sum of the exponentials.
    fn exponentials<T: Float>(scores: &mut [T], seen: Range<usize>) -> (T, f64) {
        scores[..seen.start].fill(T::ZERO);
        scores[seen.end..].fill(T::ZERO);
        let seen = &mut scores[seen];
        let largest = reduce::max(seen);
        (largest, reduce::exponentials(seen, largest))
    }
}
