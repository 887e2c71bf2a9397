//! The residual addition, where no norm follows it at once. Its gradient goes both ways as it is, so
//! there is no backward.

pub(crate) mod cpu;
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

const OP: Operator = Operator("residual");

/// `x` + `added`, two tensors of one shape.
pub fn forward(x: &Tensor, added: &Tensor) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Forward);
    timed.does(Work::moved(3 * x.elem_count(), OP.dtype("x", x)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::forward(&gpu, x, added);
    }
    let shape = x.dims();
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, shape)?;
        let added = OP.tensor::<T>("added", added, shape)?;
        OP.output(cpu::forward::<T>(&x.lock()?, &added.lock()?), shape)
    })
}
