//! The gated activation of Gemma's feed-forward layer (Shazeer, 2020): gelu(gate) * up.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use candle_core::Tensor;

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::Result,
    gelu::{Approximation, curve},
    operand::{Operator, with_float},
    timing::{Pass, Work},
};

const OP: Operator = Operator("geglu");

/// gelu(`gate`) * `up`, element by element, for two tensors of one shape; on a GPU `[n, width]`, and parts
/// of the rows of one tensor if they like.
pub fn forward(gate: &Tensor, up: &Tensor, approximation: Approximation) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Forward);
    timed.does(Work::moved(3 * gate.elem_count(), OP.dtype("gate", gate)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(gate) {
        return cuda::forward(&gpu, gate, up, approximation);
    }
    let shape = gate.dims();
    with_float!(OP.dtype("gate", gate)?, T => {
        let gate = OP.tensor::<T>("gate", gate, shape)?;
        let up = OP.tensor::<T>("up", up, shape)?;
        let (gate, up) = (gate.lock()?, up.lock()?);
        let y = match approximation {
            Approximation::Exact => cpu::forward::<T, curve::Exact>(&gate, &up),
            Approximation::Tanh => cpu::forward::<T, curve::Tanh>(&gate, &up),
        };
        OP.output(y, shape)
    })
}

/// The gradients of `gate` and `up`, all of one shape with `dy`. The activation is computed anew.
pub fn backward(
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    approximation: Approximation,
) -> Result<(Tensor, Tensor)> {
    let mut timed = OP.timed(Pass::Backward);
    timed.does(Work::moved(5 * gate.elem_count(), OP.dtype("gate", gate)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(gate) {
        return cuda::backward(&gpu, dy, gate, up, approximation);
    }
    let shape = gate.dims();
    with_float!(OP.dtype("gate", gate)?, T => {
        let dy = OP.tensor::<T>("dy", dy, shape)?;
        let gate = OP.tensor::<T>("gate", gate, shape)?;
        let up = OP.tensor::<T>("up", up, shape)?;
        let (dy, gate, up) = (dy.lock()?, gate.lock()?, up.lock()?);
        let (dgate, dup) = match approximation {
            Approximation::Exact => cpu::backward::<T, curve::Exact>(&dy, &gate, &up),
            Approximation::Tanh => cpu::backward::<T, curve::Tanh>(&dy, &gate, &up),
        };
        Ok((OP.output(dgate, shape)?, OP.output(dup, shape)?))
    })
}
