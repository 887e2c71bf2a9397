//! The backward: the forward's blocks again, with probabilities from the log-sum-exp.
//!
//! With P the probabilities and D = rowsum(dout * out):
//! dV += P^T dout, dS = P * (dout V^T - D) * scale, dQ = dS K, dK += dS^T Q.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Sees,
    cpu::{Heads, head_matrix, queries_of_block},
};
use crate::{
    float::Float,
    matrix::{Matrix, MatrixMut, Write, product, unwritten},
    reduce,
    simd::vectorised,
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

/// Gradients of one key head of one sequence, and of the query heads that read it.
struct Task<'a, T> {
    sequence: Range<usize>,
    kv_head: usize,
    dq: MatrixMut<'a, T>,
    dk: MatrixMut<'a, T>,
    dv: MatrixMut<'a, T>,
}

/// dq, dk and dv. A task has one key head of one sequence, with all the query heads that read it:
/// what they add to dk and dv has one order.
pub(super) fn backward<T: Float>(inputs: &Heads<'_, T>, saved: &Saved<'_, T>) -> [Vec<T>; 3] {
    let (sizes, sequences) = (inputs.sizes, inputs.sees.sequences);
    let mut dq = unwritten(inputs.q.len());
    let mut dk = vec![T::ZERO; inputs.k.len()];
    let mut dv = vec![T::ZERO; inputs.v.len()];
    let tasks: Vec<_> = bands(inputs, &mut dq, sizes.group())
        .zip(bands(inputs, &mut dk, 1))
        .zip(bands(inputs, &mut dv, 1))
        .enumerate()
        .map(|(task, ((dq, dk), dv))| Task {
            sequence: sequences.range(task / sizes.kv_heads),
            kv_head: task % sizes.kv_heads,
            dq,
            dk,
            dv,
        })
        .collect();
    tasks
        .into_par_iter()
        .for_each(|task| backward_task(inputs, saved, task));
    [dq, dk, dv]
}

fn backward_task<T: Float>(inputs: &Heads<'_, T>, saved: &Saved<'_, T>, mut task: Task<'_, T>) {
    let (sizes, len) = (inputs.sizes, task.sequence.len());
    let block = inputs.block(len);
    let mut scratch = Scratch {
        probabilities: unwritten(block),
        gradients: unwritten(block),
    };
    for member in 0..sizes.group() {
        let query_head = task.kv_head * sizes.group() + member;
        let head = Head::new(inputs, saved, &task.sequence, query_head);
        let columns = member * sizes.head_dim..(member + 1) * sizes.head_dim;
        let count = queries_of_block(len);
        for start in (0..len).step_by(count) {
            let queries = start..(start + count).min(len);
            let mut dq = task.dq.window(queries.clone(), columns.clone());
            head.backward_block(queries, &mut dq, &mut task.dk, &mut task.dv, &mut scratch);
        }
    }
}

/// Splits the gradient of a `[tokens, heads, head_dim]` tensor into matrices of `width` neighbouring
/// heads of one sequence.
fn bands<'a, T: Float>(
    inputs: &Heads<'a, T>,
    gradient: &'a mut [T],
    width: usize,
) -> impl Iterator<Item = MatrixMut<'a, T>> {
    let columns = width * inputs.sizes.head_dim;
    let row = inputs.sizes.kv_heads * columns;
    let sequences = inputs.sees.sequences.split(gradient, row);
    sequences.flat_map(move |part| {
        let len = part.len() / row;
        MatrixMut::new(part, len, row).split_columns(columns)
    })
}

/// One query head of one sequence: matrices `[len, head_dim]`.
struct Head<'a, T> {
    q: Matrix<'a, T>,
    k: Matrix<'a, T>,
    v: Matrix<'a, T>,
    dout: Matrix<'a, T>,
    out: Matrix<'a, T>,
    lse: &'a [T],
    scale: T,
    width: usize,
    sees: Sees<'a>,
}

impl<'a, T: Float> Head<'a, T> {
    fn new(
        inputs: &Heads<'a, T>,
        saved: &Saved<'a, T>,
        sequence: &Range<usize>,
        head: usize,
    ) -> Self {
        let sizes = &inputs.sizes;
        let kv_head = head / sizes.group();
        let queries = |data| head_matrix(data, sizes, sizes.heads, sequence, head);
        let keys = |data| head_matrix(data, sizes, sizes.kv_heads, sequence, kv_head);
        Self {
            q: queries(inputs.q),
            k: keys(inputs.k),
            v: keys(inputs.v),
            dout: queries(saved.dout),
            out: queries(saved.out),
            lse: &saved.lse[head * sizes.tokens..][sequence.clone()],
            scale: inputs.scale,
            width: sizes.head_dim,
            sees: inputs.sees,
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
        let keys = self.sees.keys_of_block(&queries);
        let (k, v) = (self.k.rows(keys.clone()), self.v.rows(keys.clone()));
        let (q, dout) = (
            self.q.rows(queries.clone()),
            self.dout.rows(queries.clone()),
        );
        let probabilities = &mut scratch.probabilities[..queries.len() * keys.len()];
        let gradients = &mut scratch.gradients[..queries.len() * keys.len()];

        let mut scores = MatrixMut::new(probabilities, queries.len(), keys.len());
        product(&mut scores, Write::Replace, self.scale, q, k.transposed());
        let mut dprobabilities = MatrixMut::new(gradients, queries.len(), keys.len());
        product(
            &mut dprobabilities,
            Write::Replace,
            T::ONE,
            dout,
            v.transposed(),
        );

        let rows = probabilities
            .chunks_exact_mut(keys.len())
            .zip(gradients.chunks_exact_mut(keys.len()));
        for (query, (scores, gradients)) in queries.clone().zip(rows) {
            let (lse, seen) = (self.lse[query], self.sees.keys(query));
            let seen = seen.start - keys.start..seen.end - keys.start;
            let of_query = Query {
                dout: self.dout.row(query),
                out: self.out.row(query),
                lse,
                scale: self.scale,
            };
            score_gradients(scores, gradients, seen, &of_query);
        }

        let probabilities = Matrix::new(probabilities, queries.len(), keys.len());
        let gradients = Matrix::new(gradients, queries.len(), keys.len());
        let columns = 0..self.width;
        let mut dv = dv.window(keys.clone(), columns.clone());
        product(
            &mut dv,
            Write::Add,
            T::ONE,
            probabilities.transposed(),
            dout,
        );
        let mut dk = dk.window(keys.clone(), columns);
        product(&mut dk, Write::Add, T::ONE, gradients.transposed(), q);
        product(dq, Write::Replace, T::ONE, gradients, k);
    }
}

/// What the gradients of a query's scores are made from.
struct Query<'a, T> {
    dout: &'a [T],
    out: &'a [T],
    lse: T,
    scale: T,
}

vectorised! {
    /// Replaces scores by probabilities, and gradients of probabilities by those of the products of
    /// queries and keys; by 0 where nothing is seen.
    fn score_gradients<T: Float>(
        scores: &mut [T],
        gradients: &mut [T],
        seen: Range<usize>,
        query: &Query<'_, T>,
    ) {
        for hidden in [0..seen.start, seen.end..scores.len()] {
            scores[hidden.clone()].fill(T::ZERO);
            gradients[hidden].fill(T::ZERO);
        }
        let mean = T::of(reduce::dot(query.dout, query.out));
        let pairs = scores[seen.clone()].iter_mut().zip(&mut gradients[seen]);
        for (score, gradient) in pairs {
            *score = (*score - query.lse).exp();
            *gradient = *score * (*gradient - mean) * query.scale;
        }
    }
}
