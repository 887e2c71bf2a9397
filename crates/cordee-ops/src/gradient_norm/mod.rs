//! The norm of a gradient, and whether it is a number at all.

mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use cordee_memory::View;

use crate::{
    error::Result,
    operand::{Operator, with_float},
    timing::Pass,
};

const OP: Operator = Operator("gradient_norm");

/// The sum of squares of all elements, in `f64` over blocks of fixed size; NaN or infinite if an
/// element is. The root is left to whoever adds the sums of all shards.
pub fn sum_of_squares(values: View<'_>) -> Result<f64> {
    let _timed = OP.timed(Pass::Update);
    with_float!(values.dtype(), T => {
        Ok(cpu::sum_of_squares(OP.weight::<T>("values", values, values.shape())?))
    })
}

/// Index of the first element that is infinite or NaN.
pub fn first_non_finite(values: View<'_>) -> Result<Option<usize>> {
    let _timed = OP.timed(Pass::Update);
    with_float!(values.dtype(), T => {
        Ok(cpu::first_non_finite(OP.weight::<T>("values", values, values.shape())?))
    })
}
