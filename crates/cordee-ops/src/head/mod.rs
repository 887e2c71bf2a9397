//! The language-model head with its loss: logits = x W^T, and the cross-entropy of each token's
//! target, a chunk of tokens at a time, so that the logits of a whole batch never exist.
//!
//! Loss and gradients are *sums* over the trained tokens. Whoever knows how many tokens the whole
//! step trains, over all micro-batches and ranks, divides.

mod chunks;
mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use candle_core::Tensor;
use cordee_memory::{DType, View, ViewMut};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    linear,
    matrix::Write,
    operand::{Operator, with_float},
    timing::{Pass, Work},
};

const OP: Operator = Operator("head");

/// What the tokens of a batch should be followed by.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// The next token of each token, `[n]`.
    pub tokens: &'a [u32],
    /// Which tokens count, `[n]`: those that are not 0; all, where there is no mask. What stands
    /// in `tokens` where the mask is 0 does not matter.
    pub mask: Option<&'a [u8]>,
}

impl Targets<'_> {
    fn counts(&self, index: usize) -> bool {
        self.mask.is_none_or(|mask| mask[index] != 0)
    }

    /// Number of tokens that count.
    fn trained(&self) -> u64 {
        let counts = |&index: &usize| self.counts(index);
        (0..self.tokens.len()).filter(counts).count() as u64
    }

    fn check(&self, n: usize, vocab: usize) -> Result<()> {
        OP.expect_len("targets", self.tokens.len(), n)?;
        if let Some(mask) = self.mask {
            OP.expect_len("mask", mask.len(), n)?;
        }
        OP.expect_tokens(self.tokens, vocab, |index| self.counts(index))
    }
}

/// The losses of a batch.
#[derive(Clone, Debug)]
pub struct Losses {
    /// Number of trained tokens.
    pub trained: u64,
    /// Negative log-likelihood of each token in nats, `[n]`; 0 where the mask is 0. `f64` on the
    /// host, `f32` on a GPU.
    pub per_token: Tensor,
}

impl Losses {
    /// Adds the sum of the losses to `nll`.
    fn new(per_token: Vec<f64>, targets: &Targets<'_>, nll: &mut f64) -> Result<Self> {
        *nll += per_token.iter().sum::<f64>();
        let n = per_token.len();
        Ok(Self {
            trained: targets.trained(),
            per_token: OP.output(per_token, &[n])?,
        })
    }
}

/// What [`loss_and_gradient`] writes.
#[derive(Debug)]
pub struct Sums<'a> {
    /// Sum of the negative log-likelihoods of the trained tokens in nats, `f64` `[1]`: added to.
    pub nll: ViewMut<'a>,
    /// Gradient of the weight, `[vocab, dim]`.
    pub dweight: ViewMut<'a>,
    /// Whether that is added to.
    pub write: Write,
}

/// Tokens of the longest chunk that [`loss`] and [`loss_and_gradient`] divide `n` into.
pub fn chunk_tokens(n: usize, vocab: usize, dtype: DType, on_gpu: bool) -> usize {
    if on_gpu {
        chunks::gpu_tokens(n, vocab, dtype)
    } else {
        chunks::host_tokens(n, vocab)
    }
}

/// Bytes of logits that [`loss`] and [`loss_and_gradient`] of `n` tokens hold at a time on the host.
pub fn scratch_bytes(n: usize, vocab: usize, dtype: DType) -> usize {
    chunks::host_tokens(n, vocab).min(n) * vocab * dtype.size_in_bytes()
}

/// The same on a GPU, whether or not this build knows of any.
pub fn gpu_scratch_bytes(n: usize, vocab: usize, dtype: DType) -> usize {
    let tokens = chunks::gpu_tokens(n, vocab, dtype).min(n);
    tokens * chunks::gpu_stride(vocab) * dtype.size_in_bytes()
}

/// All logits, `[n, vocab]`, of `x` `[n, dim]` with `weight` `[vocab, dim]`: for generation, where
/// n is small.
pub fn logits(x: &Tensor, weight: View<'_>) -> Result<Tensor> {
    let _timed = OP.timed(Pass::Forward);
    linear::forward(x, weight, None, None)
}

/// The losses of `x` `[n, dim]` with `weight` `[vocab, dim]`, without gradients; adds their sum to
/// `nll`, `f64` `[1]`.
pub fn loss(
    x: &Tensor,
    weight: View<'_>,
    targets: &Targets<'_>,
    nll: &mut ViewMut<'_>,
) -> Result<Losses> {
    let mut timed = OP.timed(Pass::Forward);
    let [n, dim] = OP.sizes("x", x.dims(), "[n, dim]")?;
    let [vocab, _] = OP.sizes("weight", weight.shape(), "[vocab, dim]")?;
    targets.check(n, vocab)?;
    timed.does(Work::product([n, dim, vocab]).moving((n + vocab) * dim, OP.dtype("x", x)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::loss(&gpu, (x, weight), targets, nll, [n, dim, vocab]);
    }
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, &[n, dim])?;
        let x = x.lock()?;
        let weight = OP.weight::<T>("weight", weight, &[vocab, dim])?;
        let nll = OP.gradient::<f64>("nll", nll, &[1])?;
        let head = cpu::Head { x: &x, weight, dim, targets };
        Losses::new(head.loss(), targets, &mut nll[0])
    })
}

/// The losses, and the gradients of their sum: returns that of `x` `[n, dim]`, writes that of the
/// weight, and the sum itself, to `sums`. The losses have the same bits as those of [`loss`].
pub fn loss_and_gradient(
    x: &Tensor,
    weight: View<'_>,
    targets: &Targets<'_>,
    mut sums: Sums<'_>,
) -> Result<(Losses, Tensor)> {
    let mut timed = OP.timed(Pass::Backward);
    let [n, dim] = OP.sizes("x", x.dims(), "[n, dim]")?;
    let [vocab, _] = OP.sizes("weight", weight.shape(), "[vocab, dim]")?;
    targets.check(n, vocab)?;
    timed.does(
        Work::flops(6.0 * n as f64 * dim as f64 * vocab as f64)
            .moving((2 * n + vocab) * dim, OP.dtype("x", x)?)
            .moving(sums.write.passes() * vocab * dim, sums.dweight.dtype()),
    );
    if n == 0 && sums.write == Write::Replace {
        // No chunk writes it.
        let cleared = sums.dweight.fill_zero();
        cleared.map_err(|source| OpError::Memory { op: OP.0, source })?;
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::loss_and_gradient(&gpu, (x, weight), targets, sums, [n, dim, vocab]);
    }
    let Sums {
        mut nll,
        mut dweight,
        write,
    } = sums;
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, &[n, dim])?;
        let x = x.lock()?;
        let weight = OP.weight::<T>("weight", weight, &[vocab, dim])?;
        let dweight = OP.gradient::<T>("dweight", &mut dweight, &[vocab, dim])?;
        let nll = OP.gradient::<f64>("nll", &mut nll, &[1])?;
        let head = cpu::Head { x: &x, weight, dim, targets };
        let (per_token, dx) = head.loss_and_gradient(dweight, write);
        let losses = Losses::new(per_token, targets, &mut nll[0])?;
        Ok((losses, OP.output(dx, &[n, dim])?))
    })
}
