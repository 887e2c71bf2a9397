//! Chunks of logits: softmax in place, then the products that need its gradient.

use std::ops::Range;

use rayon::prelude::*;

use super::{Targets, chunks};
use crate::{
    elements,
    float::Float,
    matrix::{Matrix, MatrixMut, Write, parallel_product, unwritten},
    reduce,
    simd::vectorised,
};

/// Tokens whose softmax one task computes.
const TOKENS: usize = 16;

/// What the logits' memory holds after the softmax.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Nothing of use.
    Nothing,
    /// The gradient of the summed loss: probabilities, less 1 at the target; 0 for tokens that do
    /// not count.
    Gradient,
}

/// Inputs of one call.
pub(super) struct Head<'a, T> {
    pub(super) x: &'a [T],
    pub(super) weight: &'a [T],
    pub(super) dim: usize,
    pub(super) targets: &'a Targets<'a>,
}

impl<'a, T: Float> Head<'a, T> {
    fn tokens(&self) -> usize {
        self.targets.tokens.len()
    }

    fn vocab(&self) -> usize {
        self.weight.len() / self.dim
    }

    fn weight(&self) -> Matrix<'a, T> {
        Matrix::new(self.weight, self.vocab(), self.dim)
    }

    fn x(&self, chunk: &Range<usize>) -> Matrix<'a, T> {
        Matrix::new(
            &self.x[chunk.start * self.dim..chunk.end * self.dim],
            chunk.len(),
            self.dim,
        )
    }

    /// Ranges of tokens; they depend on their number and on the vocabulary.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let tokens = self.tokens();
        let size = chunks::host_tokens(tokens, self.vocab());
        (0..tokens)
            .step_by(size)
            .map(move |start| start..(start + size).min(tokens))
    }

    /// Memory for the logits of the longest chunk.
    fn scratch(&self) -> Vec<T> {
        let longest = self.chunks().next().map_or(0, |chunk| chunk.len());
        unwritten(longest * self.vocab())
    }

    /// The negative log-likelihood of each token.
    pub(super) fn loss(&self) -> Vec<f64> {
        let mut nll = vec![0.0; self.tokens()];
        let mut scratch = self.scratch();
        for chunk in self.chunks() {
            let logits = &mut scratch[..chunk.len() * self.vocab()];
            self.softmax(&chunk, logits, &mut nll[chunk.clone()], Keep::Nothing);
        }
        nll
    }

    /// The negative log-likelihood of each token, and dx; `write`s to `dweight`.
    pub(super) fn loss_and_gradient(
        &self,
        dweight: &mut [T],
        mut write: Write,
    ) -> (Vec<f64>, Vec<T>) {
        let vocab = self.vocab();
        let mut nll = vec![0.0; self.tokens()];
        let mut scratch = self.scratch();
        let mut dx = unwritten(self.x.len());
        for chunk in self.chunks() {
            let logits = &mut scratch[..chunk.len() * vocab];
            self.softmax(&chunk, logits, &mut nll[chunk.clone()], Keep::Gradient);
            let dlogits = Matrix::new(logits, chunk.len(), vocab);
            let dx = &mut dx[chunk.start * self.dim..chunk.end * self.dim];
            let dx = MatrixMut::new(dx, chunk.len(), self.dim);
            parallel_product(dx, Write::Replace, dlogits, self.weight());
            let dweight = MatrixMut::new(dweight, vocab, self.dim);
            parallel_product(dweight, write, dlogits.transposed(), self.x(&chunk));
            write = Write::Add;
        }
        (nll, dx)
    }

    /// The logits of a chunk and the negative log-likelihood of its tokens.
    fn softmax(&self, chunk: &Range<usize>, logits: &mut [T], nll: &mut [f64], keep: Keep) {
        let vocab = self.vocab();
        let matrix = MatrixMut::new(logits, chunk.len(), vocab);
        parallel_product(
            matrix,
            Write::Replace,
            self.x(chunk),
            self.weight().transposed(),
        );
        let blocks = logits
            .par_chunks_mut(TOKENS * vocab)
            .zip(nll.par_chunks_mut(TOKENS));
        blocks.enumerate().for_each(|(block, (logits, nll))| {
            let rows = logits.chunks_exact_mut(vocab).zip(nll);
            for (token, (logits, nll)) in (chunk.start + block * TOKENS..).zip(rows) {
                *nll = self.softmax_row(token, logits, keep);
            }
        });
    }

    /// Takes the softmax of a token's logits in place and returns -ln of its target's probability.
    fn softmax_row(&self, token: usize, logits: &mut [T], keep: Keep) -> f64 {
        if !self.targets.counts(token) {
            logits.fill(T::ZERO);
            return 0.0;
        }
        let target = self.targets.tokens[token] as usize;
        let target_logit = logits[target].wide();
        let (largest, sum) = exponentials(logits);
        if keep == Keep::Gradient {
            elements::scale(logits, T::of(1.0 / sum));
            logits[target] -= T::ONE;
        }
        largest.wide() + sum.ln() - target_logit
    }
}

vectorised! {
    /// Replaces logits by the exponentials of their differences from the largest; returns that, and
    /// their sum.
    fn exponentials<T: Float>(logits: &mut [T]) -> (T, f64) {
        let largest = reduce::max(logits);
        (largest, reduce::exponentials(logits, largest))
    }
}
