//! Rotary positions (Su et al., 2021) in the half-split convention of Hugging Face's Llama: in a
//! head of width d, element i is rotated with element i + d/2 by the angle position / theta^(2i/d).

mod cpu;
mod table;
#[cfg(test)]
mod tests;

use candle_core::Tensor;

pub use table::Table;

use crate::{
    error::{OpError, Result},
    float::Float,
    operand::{Operator, with_float},
};

const OP: Operator = Operator("rotary");

/// Where tokens stand in their sequences.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// Sequences of this many tokens, one after the other, each counted from 0.
    Rows(usize),
    /// A position for each token.
    Each(&'a [u32]),
}

impl Positions<'_> {
    fn of(self, token: usize) -> usize {
        match self {
            Self::Rows(len) => token % len,
            Self::Each(positions) => positions[token] as usize,
        }
    }
}

/// Rotates every head of `x`, `[tokens, heads, head_dim]` or `[rows, len, heads, head_dim]`.
pub fn apply(x: &Tensor, positions: Positions<'_>, table: &Table) -> Result<Tensor> {
    rotate(x, positions, table, 1.0)
}

/// The gradient of the input of [`apply`] from that of its output: the rotation back.
pub fn apply_backward(dy: &Tensor, positions: Positions<'_>, table: &Table) -> Result<Tensor> {
    rotate(dy, positions, table, -1.0)
}

/// Rotates by the table's angles times `direction`, which is 1 or -1.
fn rotate(x: &Tensor, positions: Positions<'_>, table: &Table, direction: f64) -> Result<Tensor> {
    let shape = x.dims();
    let head_dim = table.head_dim();
    let (tokens, heads) = match *shape {
        [tokens, heads, width] if width == head_dim && heads > 0 => (tokens, heads),
        [rows, len, heads, width] if width == head_dim && heads > 0 => (rows * len, heads),
        _ => {
            let expected = format!("[tokens, heads, {head_dim}] or [rows, len, heads, {head_dim}]");
            return Err(OP.shape_error("x", shape, expected));
        }
    };
    if let (Positions::Rows(expected), [_, len, _, _]) = (positions, shape)
        && *len != expected
    {
        return Err(OP.shape_error("x", shape, format!("sequences of {expected} tokens")));
    }
    check_positions(positions, tokens, table)?;
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, shape)?;
        let direction = <T as Float>::of(direction);
        let y = cpu::rotate(&x.lock()?, heads, positions, table.waves(), direction);
        OP.output(y, shape)
    })
}

fn check_positions(positions: Positions<'_>, tokens: usize, table: &Table) -> Result<()> {
    let max_positions = table.max_positions();
    let outside = match positions {
        Positions::Rows(len) => {
            if len == 0 || !tokens.is_multiple_of(len) {
                let expected = format!("whole sequences of {len} tokens");
                return Err(OP.shape_error("x", &[tokens], expected));
            }
            (len.min(tokens) > max_positions).then_some((max_positions, max_positions))
        }
        Positions::Each(positions) => {
            OP.expect_len("positions", positions.len(), tokens)?;
            let mut indexed = positions
                .iter()
                .map(|&position| position as usize)
                .enumerate();
            indexed.find(|&(_, position)| position >= max_positions)
        }
    };
    match outside {
        None => Ok(()),
        Some((index, position)) => Err(OpError::Position {
            op: OP.0,
            position,
            index,
            max_positions,
        }),
    }
}
