//! The Gaussian error linear unit (Hendrycks and Gimpel, 2016): x * Phi(x), with Phi the
//! distribution function of the normal distribution.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod curve;
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

const OP: Operator = Operator("gelu");

/// How Phi is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approximation {
    /// (1 + erf(x / sqrt(2))) / 2: PyTorch's `gelu`.
    Exact,
    /// (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2: GPT-2's and Gemma's, Hugging Face's
    /// `gelu_new` and `gelu_pytorch_tanh`. Up to 5e-4 away from the exact one.
    Tanh,
}

/// The unit of each element of `x`, of any shape.
pub fn forward(x: &Tensor, approximation: Approximation) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Forward);
    timed.does(Work::moved(2 * x.elem_count(), OP.dtype("x", x)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::forward(&gpu, x, approximation);
    }
    let shape = x.dims();
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, shape)?;
        let x = x.lock()?;
        let y = match approximation {
            Approximation::Exact => cpu::forward::<T, curve::Exact>(&x),
            Approximation::Tanh => cpu::forward::<T, curve::Tanh>(&x),
        };
        OP.output(y, shape)
    })
}

/// The gradient of `x`, of one shape with `dy`. Nothing of the forward is needed.
pub fn backward(dy: &Tensor, x: &Tensor, approximation: Approximation) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Backward);
    timed.does(Work::moved(3 * x.elem_count(), OP.dtype("x", x)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::backward(&gpu, dy, x, approximation);
    }
    let shape = x.dims();
    with_float!(OP.dtype("x", x)?, T => {
        let dy = OP.tensor::<T>("dy", dy, shape)?;
        let x = OP.tensor::<T>("x", x, shape)?;
        let (dy, x) = (dy.lock()?, x.lock()?);
        let dx = match approximation {
            Approximation::Exact => cpu::backward::<T, curve::Exact>(&dy, &x),
            Approximation::Tanh => cpu::backward::<T, curve::Tanh>(&dy, &x),
        };
        OP.output(dx, shape)
    })
}
