//! Two launches for a sum, one for what is made of it.

use cordee_memory::{DType, View, ViewMut};

use super::{OP, cpu};
use crate::{
    cuda::{Gpu, Grid, Source},
    error::{OpError, Result},
};

pub(crate) static SOURCE: Source = Source {
    name: "gradient_norm",
    text: include_str!("kernels.cu"),
};

/// Elements that a block squares; `BLOCK` of the kernels.
const BLOCK: usize = 16 * 1024;

/// Threads that square, and that add up.
const THREADS: usize = 256;
const SUM_THREADS: usize = 1024;

pub(super) fn sum_of_squares(gpu: &Gpu, values: View<'_>, sum: &mut ViewMut<'_>) -> Result<()> {
    let count = values.len();
    let shape = values.shape();
    let values = OP.parameter(gpu, "values", values, DType::F32, shape)?;
    let sum = OP.parameter_mut(gpu, "sum", sum, DType::F64, &[1])?;
    let blocks = count.div_ceil(BLOCK);
    let partials = gpu.empty(OP, DType::F64, &[blocks])?;
    let squares = gpu.kernel(OP, &SOURCE, DType::F32, "squares")?;
    let arguments = [values.into(), (&partials).into(), (count as u64).into()];
    // SAFETY: values has `count` elements, and partials one for each block.
    unsafe { squares.launch(Grid::new(blocks, THREADS), &arguments)? };
    let add = gpu.kernel(OP, &SOURCE, DType::F32, "add_squares")?;
    let arguments = [(&partials).into(), sum.into(), (blocks as u64).into()];
    // SAFETY: as above; the sum is one number.
    unsafe { add.launch(Grid::new(1, SUM_THREADS), &arguments) }
}

pub(super) fn scale(
    gpu: &Gpu,
    sum: View<'_>,
    [tokens, max_norm]: [f64; 2],
    scale: &mut ViewMut<'_>,
) -> Result<()> {
    let sum = OP.parameter(gpu, "sum", sum, DType::F64, &[1])?;
    let scale = OP.parameter_mut(gpu, "scale", scale, DType::F64, &[1])?;
    let kernel = gpu.kernel(OP, &SOURCE, DType::F32, "update_scale")?;
    let arguments = [sum.into(), tokens.into(), max_norm.into(), scale.into()];
    // SAFETY: one number is read, and one written.
    unsafe { kernel.launch(Grid::new(1, 1), &arguments) }
}

/// Looks on the GPU whether there is one, and on the host for which.
pub(super) fn first_non_finite(gpu: &Gpu, values: View<'_>) -> Result<Option<usize>> {
    let memory_error = |source| OpError::Memory { op: OP.0, source };
    let mut sum = gpu.zeroed(DType::F64, 1)?;
    let mut sum = sum.view_mut(0..1, &[1]).map_err(memory_error)?;
    sum_of_squares(gpu, values, &mut sum)?;
    let found = sum.as_view().to_vec::<f64>().map_err(memory_error)?;
    if found[0].is_finite() {
        return Ok(None);
    }
    let values = values.to_vec::<f32>().map_err(memory_error)?;
    Ok(cpu::first_non_finite(&values))
}
