//! Rotary positions (Su et al., 2021) in the half-split convention of Hugging Face's Llama: in a
//! head of width d, element i is rotated with element i + d/2 by the angle position / theta^(2i/d).

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
mod table;
#[cfg(test)]
mod tests;

use candle_core::Tensor;

pub use table::{Scaling, Table};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    float::Float,
    operand::{Operator, with_float},
    sequences::Sequences,
    timing::{Pass, Work},
};

const OP: Operator = Operator("rotary");

/// Rotates every head of `x` `[tokens, heads, head_dim]` by the position of its token in its
/// sequence.
pub fn apply(x: &Tensor, sequences: Sequences<'_>, table: &Table) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Forward);
    timed.does(Work::moved(2 * x.elem_count(), OP.dtype("x", x)?));
    rotate(x, sequences, table, 1.0, To::New)
}

/// The same of an `x` that nobody reads any more: a GPU rotates it where it is, though it be a part of
/// another tensor, which then has it rotated.
pub fn apply_over(x: &Tensor, sequences: Sequences<'_>, table: &Table) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Forward);
    timed.does(Work::moved(2 * x.elem_count(), OP.dtype("x", x)?));
    rotate(x, sequences, table, 1.0, To::Itself)
}

/// The gradient of the input of [`apply`] from that of its output: the rotation back.
pub fn apply_backward(dy: &Tensor, sequences: Sequences<'_>, table: &Table) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Backward);
    timed.does(Work::moved(2 * dy.elem_count(), OP.dtype("x", dy)?));
    rotate(dy, sequences, table, -1.0, To::New)
}

/// The same of a `dy` that nobody reads any more, as [`apply_over`] has it.
pub fn apply_backward_over(dy: &Tensor, sequences: Sequences<'_>, table: &Table) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Backward);
    timed.does(Work::moved(2 * dy.elem_count(), OP.dtype("x", dy)?));
    rotate(dy, sequences, table, -1.0, To::Itself)
}

/// Where what was rotated goes; on the host always to new memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    New,
    Itself,
}

/// Rotates by the table's angles times `direction`, which is 1 or -1.
fn rotate(
    x: &Tensor,
    sequences: Sequences<'_>,
    table: &Table,
    direction: f64,
    to: To,
) -> Result<Tensor> {
    let head_dim = table.head_dim();
    let [tokens, heads, _] = OP.sizes("x", x.dims(), "[tokens, heads, head_dim]")?;
    sequences.expect(OP, tokens)?;
    check_positions(sequences, tokens, table.max_positions())?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        let turn = cuda::Turn {
            table,
            direction,
            to,
        };
        return cuda::rotate(&gpu, x, sequences, &turn, [tokens, heads]);
    }
    let _ = to;
    let shape = [tokens, heads, head_dim];
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, &shape)?;
        let direction = <T as Float>::of(direction);
        let y = cpu::rotate(&x.lock()?, heads, sequences, table.waves(), direction);
        OP.output(y, &shape)
    })
}

fn check_positions(sequences: Sequences<'_>, tokens: usize, max_positions: usize) -> Result<()> {
    let mut ranges = (0..sequences.count(tokens)).map(|index| sequences.range(index));
    match ranges.find(|range| range.len() > max_positions) {
        None => Ok(()),
        Some(range) => Err(OpError::Position {
            op: OP.0,
            position: max_positions,
            index: range.start + max_positions,
            max_positions,
        }),
    }
}
