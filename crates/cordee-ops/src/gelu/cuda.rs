//! The launches.

use candle_core::Tensor;

use super::{Approximation, OP};
use crate::{
    cuda::{Gpu, Grid, Source},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "gelu",
    text: concat!(include_str!("curve.cuh"), include_str!("kernels.cu")),
};

/// Kernels of one name do one thing, here and in what has this curve for its gate.
impl Approximation {
    pub(crate) fn forward_kernel(self) -> &'static str {
        match self {
            Self::Exact => "forward_exact",
            Self::Tanh => "forward_tanh",
        }
    }

    pub(crate) fn backward_kernel(self) -> &'static str {
        match self {
            Self::Exact => "backward_exact",
            Self::Tanh => "backward_tanh",
        }
    }
}

pub(super) fn forward(gpu: &Gpu, x: &Tensor, approximation: Approximation) -> Result<Tensor> {
    let (numbers, shape) = (OP.numbers("x", x)?, x.dims());
    let x = OP.resident(gpu, "x", x, numbers, shape)?;
    let y = gpu.empty(OP, numbers, shape)?;
    let count = shape.iter().product::<usize>();
    let kernel = gpu.kernel(OP, &SOURCE, numbers, approximation.forward_kernel())?;
    let args = [(&x).into(), (&y).into(), (count as u64).into()];
    // SAFETY: two tensors of `count` elements.
    unsafe { kernel.launch(Grid::of_elements(count, numbers), &args)? };
    Ok(y.into_tensor())
}

pub(super) fn backward(
    gpu: &Gpu,
    dy: &Tensor,
    x: &Tensor,
    approximation: Approximation,
) -> Result<Tensor> {
    let (numbers, shape) = (OP.numbers("x", x)?, x.dims());
    let dy = OP.resident(gpu, "dy", dy, numbers, shape)?;
    let x = OP.resident(gpu, "x", x, numbers, shape)?;
    let dx = gpu.empty(OP, numbers, shape)?;
    let count = shape.iter().product::<usize>();
    let kernel = gpu.kernel(OP, &SOURCE, numbers, approximation.backward_kernel())?;
    let args = [
        (&dy).into(),
        (&x).into(),
        (&dx).into(),
        (count as u64).into(),
    ];
    // SAFETY: three tensors of `count` elements.
    unsafe { kernel.launch(Grid::of_elements(count, numbers), &args)? };
    Ok(dx.into_tensor())
}
