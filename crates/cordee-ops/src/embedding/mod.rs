//! The token embedding: a row of the table per token.

mod cpu;
#[cfg(test)]
mod tests;

use candle_core::Tensor;
use cordee_memory::{View, ViewMut};

use crate::{
    error::Result,
    operand::{Operator, with_float},
};

const OP: Operator = Operator("embedding");

/// Rows of `weight` `[vocab, dim]` for `tokens` `[n]`: `[n, dim]`.
pub fn forward(tokens: &[u32], weight: View<'_>) -> Result<Tensor> {
    let [vocab, dim] = OP.sizes("weight", weight.shape(), "[vocab, dim]")?;
    OP.expect_tokens(tokens, vocab, |_| true)?;
    with_float!(weight.dtype(), T => {
        let weight = OP.weight::<T>("weight", weight, &[vocab, dim])?;
        OP.output(cpu::forward(tokens, weight, dim), &[tokens.len(), dim])
    })
}

/// Adds each row of `dy` `[n, dim]` to the row of `dweight` `[vocab, dim]` that its token names.
/// Rows of a token that occurs often are added in the order of its occurrences.
pub fn backward(tokens: &[u32], dy: &Tensor, dweight: &mut ViewMut<'_>) -> Result<()> {
    let [vocab, dim] = OP.sizes("dweight", dweight.shape(), "[vocab, dim]")?;
    OP.expect_tokens(tokens, vocab, |_| true)?;
    with_float!(OP.dtype("dy", dy)?, T => {
        let dy = OP.tensor::<T>("dy", dy, &[tokens.len(), dim])?;
        let dweight = OP.gradient::<T>("dweight", dweight, &[vocab, dim])?;
        cpu::backward(tokens, &dy.lock()?, dweight, dim);
        Ok(())
    })
}
