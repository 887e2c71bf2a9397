//! The launches.

use candle_core::Tensor;

use super::OP;
use crate::{
    cuda::{Gated, Gpu, Source},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "swiglu",
    text: include_str!("kernels.cu"),
};

pub(super) fn forward(gpu: &Gpu, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let gated = Gated::read(gpu, OP, &[("gate", gate), ("up", up)])?;
    let (y, stride) = gated.output(gpu)?;
    // SAFETY: the kernel takes two and writes one.
    unsafe { gated.launch(gpu, (&SOURCE, "forward"), &[(y.address(), stride)])? };
    Ok(y.into_tensor())
}

/// Both gradients lie side by side.
pub(super) fn backward(
    gpu: &Gpu,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let gated = Gated::read(gpu, OP, &[("dy", dy), ("gate", gate), ("up", up)])?;
    let [(dgate, to_gate), (dup, to_up)] = gated.pair(gpu)?;
    // SAFETY: the kernel takes three and writes two.
    unsafe { gated.launch(gpu, (&SOURCE, "backward"), &[to_gate, to_up])? };
    Ok((dgate, dup))
}
