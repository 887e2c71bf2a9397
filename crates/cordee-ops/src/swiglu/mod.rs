//! The gated activation of Llama's feed-forward layer (Shazeer, 2020): silu(gate) * up, with
//! silu(x) = x / (1 + e^-x).

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
    operand::{Operator, with_float},
    timing::{Pass, Work},
};

const OP: Operator = Operator("swiglu");

/// silu(`gate`) * `up`, element by element, for two tensors of one shape; on a GPU `[n, width]`, and parts
/// of the rows of one tensor if they like.
pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Forward);
    timed.does(Work::moved(3 * gate.elem_count(), OP.dtype("gate", gate)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(gate) {
        return cuda::forward(&gpu, gate, up);
    }
    let shape = gate.dims();
    with_float!(OP.dtype("gate", gate)?, T => {
        let gate = OP.tensor::<T>("gate", gate, shape)?;
        let up = OP.tensor::<T>("up", up, shape)?;
        OP.output(cpu::forward::<T>(&gate.lock()?, &up.lock()?), shape)
    })
}

/// The gradients of `gate` and `up`, all of one shape with `dy`. The activation is computed anew.
pub fn backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut timed = OP.timed(Pass::Backward);
    timed.does(Work::moved(5 * gate.elem_count(), OP.dtype("gate", gate)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(gate) {
        return cuda::backward(&gpu, dy, gate, up);
    }
    let shape = gate.dims();
    with_float!(OP.dtype("gate", gate)?, T => {
        let dy = OP.tensor::<T>("dy", dy, shape)?;
        let gate = OP.tensor::<T>("gate", gate, shape)?;
        let up = OP.tensor::<T>("up", up, shape)?;
        let (dgate, dup) = cpu::backward::<T>(&dy.lock()?, &gate.lock()?, &up.lock()?);
        Ok((OP.output(dgate, shape)?, OP.output(dup, shape)?))
    })
}
