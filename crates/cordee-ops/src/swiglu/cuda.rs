//! The launches.

use candle_core::Tensor;

use super::OP;
use crate::{
    cuda::{Gpu, Grid, Source},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "swiglu",
    text: include_str!("kernels.cu"),
};

pub(super) fn forward(gpu: &Gpu, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (numbers, shape) = (OP.numbers("gate", gate)?, gate.dims());
    let gate = OP.resident(gpu, "gate", gate, numbers, shape)?;
    let up = OP.resident(gpu, "up", up, numbers, shape)?;
    let y = gpu.empty(OP, numbers, shape)?;
    let count = shape.iter().product::<usize>();
    let kernel = gpu.kernel(OP, &SOURCE, numbers, "forward")?;
    let args = [
        (&gate).into(),
        (&up).into(),
        (&y).into(),
        (count as u64).into(),
    ];
    // SAFETY: three tensors of `count` elements.
    unsafe { kernel.launch(Grid::of_elements(count, numbers), &args)? };
    Ok(y.into_tensor())
}

pub(super) fn backward(
    gpu: &Gpu,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (numbers, shape) = (OP.numbers("gate", gate)?, gate.dims());
    let dy = OP.resident(gpu, "dy", dy, numbers, shape)?;
    let gate = OP.resident(gpu, "gate", gate, numbers, shape)?;
    let up = OP.resident(gpu, "up", up, numbers, shape)?;
    let dgate = gpu.empty(OP, numbers, shape)?;
    let dup = gpu.empty(OP, numbers, shape)?;
    let count = shape.iter().product::<usize>();
    let kernel = gpu.kernel(OP, &SOURCE, numbers, "backward")?;
    let args = [
        (&dy).into(),
        (&gate).into(),
        (&up).into(),
        (&dgate).into(),
        (&dup).into(),
        (count as u64).into(),
    ];
    // SAFETY: five tensors of `count` elements.
    unsafe { kernel.launch(Grid::of_elements(count, numbers), &args)? };
    Ok((dgate.into_tensor(), dup.into_tensor()))
}
