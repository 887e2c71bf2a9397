//! Numbers that go into both ways of computing, and what comes out of the fast one.

use candle_core::Tensor;
use cordee_memory::{View, ViewMut};

use crate::{
    error::Result,
    operand::Operator,
    random::{Stream, normal_fill},
};

const OP: Operator = Operator("conformance");

/// Normal deviates that `f32` holds exactly, the same for the same name.
pub(crate) fn normals(name: &str, count: usize) -> Vec<f64> {
    let mut values = vec![0.0_f32; count];
    let mut view = view_mut(&mut values, &[count]);
    normal_fill(&mut view, Stream::named(0, name), 1.0).expect("1 is a standard deviation");
    values.into_iter().map(f64::from).collect()
}

/// The numbers times `scale` plus `offset`, rounded so that `f32` holds them exactly.
pub(super) fn affine(values: Vec<f64>, scale: f64, offset: f64) -> Vec<f64> {
    let round = |value: f64| f64::from((value * scale + offset) as f32);
    values.into_iter().map(round).collect()
}

/// Numbers that `f32` holds, in it.
pub(super) fn single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// The same numbers in `f64`.
pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// A tensor of numbers that `f32` holds.
pub(super) fn tensor(values: &[f64], shape: &[usize]) -> Result<Tensor> {
    OP.output(single(values), shape)
}

/// The numbers of a tensor, which has as many as the reference expects.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let operand = OP.tensor::<f32>("result", tensor, tensor.dims())?;
    let locked = operand.lock()?;
    Ok(wide(&locked))
}

/// A parameter.
pub(super) fn view<'a>(values: &'a [f32], shape: &[usize]) -> View<'a> {
    View::from_slice(values, shape).expect("the shape is that of the slice")
}

/// A parameter's gradient.
pub(super) fn view_mut<'a>(values: &'a mut [f32], shape: &[usize]) -> ViewMut<'a> {
    ViewMut::from_slice(values, shape).expect("the shape is that of the slice")
}

/// `values` plus `more`, element by element: what a gradient holds after it was added to.
pub(super) fn sum(values: &[f64], more: &[f64]) -> Vec<f64> {
    values.iter().zip(more).map(|(a, b)| a + b).collect()
}
