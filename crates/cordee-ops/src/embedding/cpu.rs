//! Gather and scatter of rows.

use rayon::prelude::*;

use crate::{
    float::Float,
    matrix::{MatrixMut, unwritten},
};

/// Tokens that one task gathers.
const TOKENS: usize = 256;

/// Columns that one task scatters: every task walks all tokens, so that a row's sum has one order.
const COLUMNS: usize = 64;

pub(super) fn forward<T: Float>(tokens: &[u32], weight: &[T], dim: usize, scale: T) -> Vec<T> {
    let mut y = unwritten(tokens.len() * dim);
    y.par_chunks_mut(TOKENS * dim)
        .zip(tokens.par_chunks(TOKENS))
        .for_each(|(y, tokens)| {
            for (y, &token) in y.chunks_exact_mut(dim).zip(tokens) {
                let weight = &weight[token as usize * dim..][..dim];
                for (y, &weight) in y.iter_mut().zip(weight) {
                    *y = weight * scale;
                }
            }
        });
    y
}

pub(super) fn backward<T: Float>(
    tokens: &[u32],
    dy: &[T],
    scale: T,
    dweight: &mut [T],
    dim: usize,
) {
    let vocab = dweight.len() / dim;
    let bands = MatrixMut::new(dweight, vocab, dim).split_columns(COLUMNS);
    bands
        .into_par_iter()
        .zip((0..dim).into_par_iter().step_by(COLUMNS))
        .for_each(|(mut band, column)| {
            for (&token, dy) in tokens.iter().zip(dy.chunks_exact(dim)) {
                for (sum, &dy) in band.row(token as usize).iter_mut().zip(&dy[column..]) {
                    *sum += dy * scale;
                }
            }
        });
}
