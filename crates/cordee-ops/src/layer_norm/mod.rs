//! Layer normalisation (Ba, Kiros and Hinton, 2016), alone or with the addition of the residual
//! stream before it.
//!
//! y = (x - mean) * rstd * weight + bias with rstd = 1 / sqrt(variance + eps), mean and variance
//! (that of all, not of a sample) taken over a row.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use candle_core::Tensor;
use cordee_memory::{View, ViewMut};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    operand::{Operator, with_float},
    residual as addition,
    timing::{Pass, Work},
};

const OP: Operator = Operator("layer_norm");

/// What [`forward`] returns.
#[derive(Clone, Debug)]
pub struct Normed {
    /// The normalised rows, `[n, dim]`.
    pub y: Tensor,
    /// The mean of each row, `[n]`; the backward needs it.
    pub mean: Tensor,
    /// The reciprocal of each row's standard deviation, `[n]`; the backward needs it.
    pub rstd: Tensor,
}

/// Normalises the rows of `x` `[n, dim]` with gains `weight` and `bias`, `[dim]` each.
pub fn forward(x: &Tensor, weight: View<'_>, bias: View<'_>, eps: f64) -> Result<Normed> {
    let mut timed = OP.timed(Pass::Forward);
    let [n, dim] = OP.sizes("x", x.dims(), "[n, dim]")?;
    check_eps(eps)?;
    timed.does(Work::moved(2 * n * dim, OP.dtype("x", x)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::forward(&gpu, x, cuda::Affine { weight, bias, eps }, [n, dim]);
    }
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, &[n, dim])?;
        let affine = cpu::Affine {
            weight: OP.weight::<T>("weight", weight, &[dim])?,
            bias: OP.weight::<T>("bias", bias, &[dim])?,
            eps,
        };
        let rows = cpu::forward(&x.lock()?, affine);
        Ok(Normed {
            y: OP.output(rows.y, &[n, dim])?,
            mean: OP.output(rows.mean, &[n])?,
            rstd: OP.output(rows.rstd, &[n])?,
        })
    })
}

/// Adds `residual` to `x`, both `[n, dim]`, and normalises the sum: returns the sum, which is the
/// residual stream from here on, and what [`forward`] would return for it.
pub fn forward_residual(
    x: &Tensor,
    residual: &Tensor,
    weight: View<'_>,
    bias: View<'_>,
    eps: f64,
) -> Result<(Tensor, Normed)> {
    let mut timed = OP.timed(Pass::Forward);
    let [n, dim] = OP.sizes("x", x.dims(), "[n, dim]")?;
    check_eps(eps)?;
    timed.does(Work::moved(4 * n * dim, OP.dtype("x", x)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        let affine = cuda::Affine { weight, bias, eps };
        return cuda::forward_residual(&gpu, x, residual, affine, [n, dim]);
    }
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, &[n, dim])?;
        let residual = OP.tensor::<T>("residual", residual, &[n, dim])?;
        let sum = OP.output(addition::cpu::forward::<T>(&x.lock()?, &residual.lock()?), &[n, dim])?;
        let normed = forward(&sum, weight, bias, eps)?;
        Ok((sum, normed))
    })
}

/// What the backward reads.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// Gradient of the output, `[n, dim]`.
    pub dy: &'a Tensor,
    /// What was normalised, `[n, dim]`; the sum, where a residual was added.
    pub x: &'a Tensor,
    /// The gains, `[dim]`.
    pub weight: View<'a>,
    /// From the forward, `[n]`.
    pub mean: &'a Tensor,
    /// From the forward, `[n]`.
    pub rstd: &'a Tensor,
    /// Gradient that reaches `x` past the norm, along the residual stream, `[n, dim]`.
    pub residual: Option<&'a Tensor>,
}

/// The gradient of `x` `[n, dim]`, that of the residual stream included; the gradients of gains and
/// bias are added to `dweight` and `dbias`, `[dim]` each.
pub fn backward(
    inputs: &Backward<'_>,
    dweight: &mut ViewMut<'_>,
    dbias: &mut ViewMut<'_>,
) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Backward);
    let [n, dim] = OP.sizes("x", inputs.x.dims(), "[n, dim]")?;
    timed.does(Work::moved(
        (3 + usize::from(inputs.residual.is_some())) * n * dim,
        OP.dtype("x", inputs.x)?,
    ));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(inputs.x) {
        return cuda::backward(&gpu, inputs, dweight, dbias, [n, dim]);
    }
    with_float!(OP.dtype("x", inputs.x)?, T => {
        let dy = OP.tensor::<T>("dy", inputs.dy, &[n, dim])?;
        let x = OP.tensor::<T>("x", inputs.x, &[n, dim])?;
        let mean = OP.tensor::<T>("mean", inputs.mean, &[n])?;
        let rstd = OP.tensor::<T>("rstd", inputs.rstd, &[n])?;
        let residual = match inputs.residual {
            Some(residual) => Some(OP.tensor::<T>("residual", residual, &[n, dim])?),
            None => None,
        };
        let residual = match &residual {
            Some(residual) => Some(residual.lock()?),
            None => None,
        };
        let rows = cpu::Rows {
            dy: &dy.lock()?,
            x: &x.lock()?,
            weight: OP.weight::<T>("weight", inputs.weight, &[dim])?,
            mean: &mean.lock()?,
            rstd: &rstd.lock()?,
            residual: residual.as_deref(),
        };
        let dweight = OP.gradient::<T>("dweight", dweight, &[dim])?;
        let dbias = OP.gradient::<T>("dbias", dbias, &[dim])?;
        OP.output(cpu::backward(&rows, dweight, dbias), &[n, dim])
    })
}

fn check_eps(eps: f64) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(OpError::Argument {
        op: OP.0,
        name: "eps",
        value: eps,
        expected: "a number that is 0 or more",
    })
}
