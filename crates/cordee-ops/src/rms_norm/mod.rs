//! Root-mean-square normalisation (Zhang and Sennrich, 2019), alone or with the addition of the
//! residual stream before it.
//!
//! y = x * rstd * gain with rstd = 1 / sqrt(mean(x^2) + eps), the mean taken over a row.

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
    float::Float,
    operand::{Operator, with_float},
    timing::{Pass, Work},
};

const OP: Operator = Operator("rms_norm");

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the mean of the squares.
    pub eps: f64,
    /// Whether gains are stored as their difference from 1, as Gemma's are.
    pub unit_offset: bool,
}

impl Norm {
    fn check(self) -> Result<()> {
        if self.eps.is_finite() && self.eps >= 0.0 {
            return Ok(());
        }
        Err(OpError::Argument {
            op: OP.0,
            name: "eps",
            value: self.eps,
            expected: "a number that is 0 or more",
        })
    }

    /// What is added to the stored gains.
    fn offset<T: Float>(self) -> T {
        if self.unit_offset { T::ONE } else { T::ZERO }
    }
}

/// What [`forward`] returns.
#[derive(Clone, Debug)]
pub struct Normed {
    /// The normalised rows, `[n, dim]`.
    pub y: Tensor,
    /// The reciprocal of each row's root mean square, `[n]`; the backward needs it.
    pub rstd: Tensor,
}

/// Normalises the rows of `x` `[n, dim]`; `weight` `[dim]` holds the gains.
pub fn forward(x: &Tensor, weight: View<'_>, norm: Norm) -> Result<Normed> {
    let mut timed = OP.timed(Pass::Forward);
    let [n, dim] = OP.sizes("x", x.dims(), "[n, dim]")?;
    norm.check()?;
    timed.does(Work::moved(2 * n * dim, OP.dtype("x", x)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::forward(&gpu, x, weight, norm, [n, dim]);
    }
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, &[n, dim])?;
        let weight = OP.weight::<T>("weight", weight, &[dim])?;
        let gains = cpu::Gains { weight, offset: norm.offset() };
        let (y, rstd) = cpu::forward(&x.lock()?, gains, norm.eps);
        Ok(Normed { y: OP.output(y, &[n, dim])?, rstd: OP.output(rstd, &[n])? })
    })
}

/// Adds `residual` to `x`, both `[n, dim]`, and normalises the sum: returns the sum, which is the
/// residual stream from here on, and what [`forward`] would return for it.
pub fn forward_residual(
    x: &Tensor,
    residual: &Tensor,
    weight: View<'_>,
    norm: Norm,
) -> Result<(Tensor, Normed)> {
    let mut timed = OP.timed(Pass::Forward);
    let [n, dim] = OP.sizes("x", x.dims(), "[n, dim]")?;
    norm.check()?;
    timed.does(Work::moved(4 * n * dim, OP.dtype("x", x)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::forward_residual(&gpu, x, residual, weight, norm, [n, dim]);
    }
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, &[n, dim])?;
        let residual = OP.tensor::<T>("residual", residual, &[n, dim])?;
        let weight = OP.weight::<T>("weight", weight, &[dim])?;
        let gains = cpu::Gains { weight, offset: norm.offset() };
        let (sum, y, rstd) = cpu::forward_residual(&x.lock()?, &residual.lock()?, gains, norm.eps);
        let normed = Normed { y: OP.output(y, &[n, dim])?, rstd: OP.output(rstd, &[n])? };
        Ok((OP.output(sum, &[n, dim])?, normed))
    })
}

/// What the backward reads.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// That of the forward.
    pub norm: Norm,
    /// Gradient of the output, `[n, dim]`.
    pub dy: &'a Tensor,
    /// What was normalised, `[n, dim]`; the sum, where a residual was added.
    pub x: &'a Tensor,
    /// The gains, `[dim]`.
    pub weight: View<'a>,
    /// From the forward, `[n]`.
    pub rstd: &'a Tensor,
    /// Gradient that reaches `x` past the norm, along the residual stream, `[n, dim]`.
    pub residual: Option<&'a Tensor>,
}

/// The gradient of `x` `[n, dim]`, that of the residual stream included; the gains' gradient is
/// added to `dweight` `[dim]`.
pub fn backward(inputs: &Backward<'_>, dweight: &mut ViewMut<'_>) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Backward);
    let [n, dim] = OP.sizes("x", inputs.x.dims(), "[n, dim]")?;
    timed.does(Work::moved(
        (3 + usize::from(inputs.residual.is_some())) * n * dim,
        OP.dtype("x", inputs.x)?,
    ));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(inputs.x) {
        return cuda::backward(&gpu, inputs, dweight, [n, dim]);
    }
    with_float!(OP.dtype("x", inputs.x)?, T => {
        let dy = OP.tensor::<T>("dy", inputs.dy, &[n, dim])?;
        let x = OP.tensor::<T>("x", inputs.x, &[n, dim])?;
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
            gains: cpu::Gains {
                weight: OP.weight::<T>("weight", inputs.weight, &[dim])?,
                offset: inputs.norm.offset(),
            },
            rstd: &rstd.lock()?,
            residual: residual.as_deref(),
        };
        let dx = cpu::backward(&rows, OP.gradient::<T>("dweight", dweight, &[dim])?);
        OP.output(dx, &[n, dim])
    })
}
