//! One launch over all four arrays.

use cordee_memory::{DType, View};

use super::{AdamW, Coefficients, OP, State};
use crate::{
    cuda::{Arg, Gpu, Grid, Source},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "adamw",
    text: include_str!("kernels.cu"),
};

/// Threads of a block, and parameters of a thread.
const THREADS: usize = 256;
const PARAMETERS: usize = 4;

pub(super) fn step(
    gpu: &Gpu,
    state: State<'_>,
    gradients: View<'_>,
    scale: View<'_>,
    hyper: &AdamW,
) -> Result<()> {
    let State {
        mut params,
        mut m,
        mut v,
        mut compute,
    } = state;
    let shape = gradients.shape();
    let numbers = match &compute {
        Some(compute) => OP.numbers_of_view("compute", &compute.as_view())?,
        None => DType::F32,
    };
    let count = gradients.len();
    let gradients = OP.parameter(gpu, "gradients", gradients, DType::F32, shape)?;
    let params = OP.parameter_mut(gpu, "params", &mut params, DType::F32, shape)?;
    let m = OP.parameter_mut(gpu, "m", &mut m, DType::F32, shape)?;
    let v = OP.parameter_mut(gpu, "v", &mut v, DType::F32, shape)?;
    let compute = compute
        .as_mut()
        .map(|compute| OP.parameter_mut(gpu, "compute", compute, numbers, shape))
        .transpose()?;
    let scale = OP.parameter(gpu, "scale", scale, DType::F64, &[1])?;
    let coefficients = Coefficients::new(hyper);
    let constants = [
        coefficients.keep,
        coefficients.beta2,
        coefficients.rest1,
        coefficients.rest2,
        coefficients.root_correction,
        coefficients.eps,
        coefficients.step_size,
    ];
    let arrays: [Arg; 6] = [
        params.into(),
        m.into(),
        v.into(),
        gradients.into(),
        compute.into(),
        scale.into(),
    ];
    let constants = constants.map(|constant| Arg::from(constant as f32));
    let arguments = [&arrays[..], &[(count as u64).into()], &constants[..]].concat();
    let kernel = gpu.kernel(OP, &SOURCE, numbers, "adamw")?;
    let grid = Grid::new(count.div_ceil(THREADS * PARAMETERS), THREADS);
    // SAFETY: all arrays have `count` elements, but for the copy, which may be null.
    unsafe { kernel.launch(grid, &arguments) }
}
