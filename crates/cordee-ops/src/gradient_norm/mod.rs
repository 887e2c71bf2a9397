//! The norm of a gradient, whether it is a number at all, and what it makes of the update.
//!
//! Sums and scales lie in memory of the device, so that an update waits for nobody to read them.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use cordee_memory::{View, ViewMut};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::Result,
    operand::{Operator, with_float},
    timing::{Pass, Work},
};

const OP: Operator = Operator("gradient_norm");

/// Writes the sum of squares of all elements to `sum`, `f64` `[1]`: in `f64` over blocks of fixed
/// size; NaN or infinite if an element is. The root is left to whoever adds the sums of all shards.
pub fn sum_of_squares(values: View<'_>, sum: &mut ViewMut<'_>) -> Result<()> {
    let mut timed = OP.timed(Pass::Update);
    timed.does(Work::moved(values.len(), values.dtype()));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&values) {
        return cuda::sum_of_squares(&gpu, values, sum);
    }
    with_float!(values.dtype(), T => {
        let values = OP.weight::<T>("values", values, values.shape())?;
        OP.gradient::<f64>("sum", sum, &[1])?[0] = cpu::sum_of_squares(values);
        Ok(())
    })
}

/// Writes to `sum`, `f64` `[1]`, the sum of `squares`, `f64` `[n]`, in that order; and to `scale`, `f64`
/// `[1]`, what summed gradients over `tokens` tokens are multiplied by in an update, where that is their
/// sum of squares: one over the tokens, times the [`clip_factor`] of their mean's norm. NaN where the
/// sum is not finite, of which no update makes anything.
pub fn scale(
    squares: View<'_>,
    tokens: f64,
    max_norm: f64,
    sum: &mut ViewMut<'_>,
    scale: &mut ViewMut<'_>,
) -> Result<()> {
    let _timed = OP.timed(Pass::Update);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&squares) {
        return cuda::scale(&gpu, squares, [tokens, max_norm], sum, scale);
    }
    let squares = OP.weight::<f64>("squares", squares, squares.shape())?;
    let sum = &mut OP.gradient::<f64>("sum", sum, &[1])?[0];
    *sum = squares.iter().fold(0.0, |sum, square| sum + square);
    let scale = OP.gradient::<f64>("scale", scale, &[1])?;
    scale[0] = if sum.is_finite() {
        clip_factor(max_norm, sum.sqrt() / tokens) / tokens
    } else {
        f64::NAN
    };
    Ok(())
}

/// What a gradient of norm `norm` is multiplied by so that its norm is at most `max_norm`, 0 for no
/// such bound; the same small number is added to the norm as in `torch.nn.utils.clip_grad_norm_`.
pub fn clip_factor(max_norm: f64, norm: f64) -> f64 {
    if max_norm == 0.0 {
        1.0
    } else {
        (max_norm / (norm + 1e-6)).min(1.0)
    }
}

/// Index of the first element that is infinite or NaN. Waits for the device that the elements are on.
pub fn first_non_finite(values: View<'_>) -> Result<Option<usize>> {
    let _timed = OP.timed(Pass::Update);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&values) {
        return cuda::first_non_finite(&gpu, values);
    }
    with_float!(values.dtype(), T => {
        Ok(cpu::first_non_finite(OP.weight::<T>("values", values, values.shape())?))
    })
}
