//! The token embedding: a row of the table per token.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use candle_core::Tensor;
use cordee_memory::{View, ViewMut};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    float::Float,
    operand::{Operator, with_float},
    timing::{Pass, Work},
};

const OP: Operator = Operator("embedding");

/// Rows of `weight` `[vocab, dim]` for `tokens` `[n]`, times `scale`: `[n, dim]`. Gemma's `scale` is
/// the root of `dim`, that of most others 1.
pub fn forward(tokens: &[u32], weight: View<'_>, scale: f64) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Forward);
    let [vocab, dim] = OP.sizes("weight", weight.shape(), "[vocab, dim]")?;
    OP.expect_tokens(tokens, vocab, |_| true)?;
    check_scale(scale)?;
    timed.does(Work::moved(2 * tokens.len() * dim, weight.dtype()));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&weight) {
        return cuda::forward(&gpu, tokens, weight, scale, [vocab, dim]);
    }
    with_float!(weight.dtype(), T => {
        let weight = OP.weight::<T>("weight", weight, &[vocab, dim])?;
        OP.output(cpu::forward(tokens, weight, dim, Float::of(scale)), &[tokens.len(), dim])
    })
}

/// Adds each row of `dy` `[n, dim]`, times `scale`, to the row of `dweight` `[vocab, dim]` that its token names.
/// Rows of a token that occurs often are added in the order of its occurrences.
pub fn backward(tokens: &[u32], dy: &Tensor, scale: f64, dweight: &mut ViewMut<'_>) -> Result<()> {
    let mut timed = OP.timed(Pass::Backward);
    let [vocab, dim] = OP.sizes("dweight", dweight.shape(), "[vocab, dim]")?;
    OP.expect_tokens(tokens, vocab, |_| true)?;
    check_scale(scale)?;
    if timed.runs() {
        // The rows of the gradient that tokens have: counting them is work of its own.
        let rows = tokens.iter().collect::<HashSet<_>>().len();
        let read = Work::moved(tokens.len() * dim, OP.dtype("dy", dy)?);
        timed.does(read.moving(2 * rows * dim, dweight.dtype()));
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(dy) {
        return cuda::backward(&gpu, tokens, dy, scale, dweight, [vocab, dim]);
    }
    with_float!(OP.dtype("dy", dy)?, T => {
        let dy = OP.tensor::<T>("dy", dy, &[tokens.len(), dim])?;
        let dweight = OP.gradient::<T>("dweight", dweight, &[vocab, dim])?;
        cpu::backward(tokens, &dy.lock()?, Float::of(scale), dweight, dim);
        Ok(())
    })
}

fn check_scale(scale: f64) -> Result<()> {
    if scale.is_finite() {
        return Ok(());
    }
    Err(OpError::Argument {
        op: OP.0,
        name: "scale",
        value: scale,
        expected: "a finite number",
    })
}
