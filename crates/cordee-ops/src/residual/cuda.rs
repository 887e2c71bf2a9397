//! The launch.

use candle_core::Tensor;

use super::OP;
use crate::{
    cuda::{Gpu, Grid, Source},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "residual",
    text: include_str!("kernels.cu"),
};

pub(super) fn forward(gpu: &Gpu, x: &Tensor, added: &Tensor) -> Result<Tensor> {
    let (numbers, shape) = (OP.numbers("x", x)?, x.dims());
    let x = OP.resident(gpu, "x", x, numbers, shape)?;
    let added = OP.resident(gpu, "added", added, numbers, shape)?;
    let y = gpu.empty(OP, numbers, shape)?;
    let count = shape.iter().product::<usize>();
    let kernel = gpu.kernel(OP, &SOURCE, numbers, "forward")?;
    let args = [
        (&x).into(),
        (&added).into(),
        (&y).into(),
        (count as u64).into(),
    ];
    // SAFETY: three tensors of `count` elements.
    unsafe { kernel.launch(Grid::of_elements(count, numbers), &args)? };
    Ok(y.into_tensor())
}
