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
    let numbers = OP.numbers_of_view("values", &values)?;
    let values = OP.parameter(gpu, "values", values, numbers, shape)?;
    let sum = OP.parameter_mut(gpu, "sum", sum, DType::F64, &[1])?;
    let blocks = count.div_ceil(BLOCK);
    let partials = gpu.empty(OP, DType::F64, &[blocks])?;
    let squares = gpu.kernel(OP, &SOURCE, numbers, "squares")?;
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
    squares: View<'_>,
    [tokens, max_norm]: [f64; 2],
    sum: &mut ViewMut<'_>,
    scale: &mut ViewMut<'_>,
) -> Result<()> {
    let (count, shape) = (squares.len(), squares.shape());
    let squares = OP.parameter(gpu, "squares", squares, DType::F64, shape)?;
    let sum = OP.parameter_mut(gpu, "sum", sum, DType::F64, &[1])?;
    let scale = OP.parameter_mut(gpu, "scale", scale, DType::F64, &[1])?;
    let kernel = gpu.kernel(OP, &SOURCE, DType::F32, "update_scale")?;
    let arguments = [
        squares.into(),
        (count as u64).into(),
        tokens.into(),
        max_norm.into(),
        sum.into(),
        scale.into(),
    ];
    // SAFETY: `count` numbers are read, and two written.
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

#[cfg(test)]
mod tests {
    use cordee_memory::Buffer;

    use super::{super::first_non_finite, *};
    use crate::{
        GpuOptions,
        adamw::{self, AdamW, State},
    };

    const COUNT: usize = 40_003;

    fn buffer<T: cordee_memory::Element>(gpu: &Gpu, values: &[T]) -> Buffer {
        let mut host = Buffer::zeroed(T::DTYPE, values.len()).unwrap();
        host.as_mut_slice().unwrap().copy_from_slice(values);
        let mut buffer = gpu.zeroed(T::DTYPE, values.len()).unwrap();
        buffer.copy_from_host(&host).unwrap();
        buffer
    }

    #[test]
    fn what_is_not_finite_is_found_and_changes_nothing() {
        if Gpu::count() == 0 {
            return;
        }
        let gpu = Gpu::open(0, &GpuOptions::default()).unwrap();
        for (at, bad) in [
            (5, f32::NAN),
            (33_000, f32::INFINITY),
            (40_002, f32::NEG_INFINITY),
        ] {
            let mut values = vec![1.0_f32; COUNT];
            let fine = buffer(&gpu, &values);
            let fine = fine.view(0..COUNT, &[COUNT]).unwrap();
            assert_eq!(first_non_finite(fine).unwrap(), None);
            values[at] = bad;
            let gradients = buffer(&gpu, &values);
            let gradients = gradients.view(0..COUNT, &[COUNT]).unwrap();
            assert_eq!(first_non_finite(gradients).unwrap(), Some(at));

            let mut numbers = buffer(&gpu, &[7.0_f64; 2]);
            let mut total = buffer(&gpu, &[7.0_f64]);
            let (sum, factor) = (0..1, 1..2);
            let mut view = numbers.view_mut(sum.clone(), &[1]).unwrap();
            sum_of_squares(&gpu, gradients, &mut view).unwrap();
            let squares = numbers.view(sum, &[1]).unwrap().to_vec::<f64>().unwrap();
            assert!(!squares[0].is_finite());
            let squares = buffer(&gpu, &squares);
            let squares = squares.view(0..1, &[1]).unwrap();
            let mut view = numbers.view_mut(factor.clone(), &[1]).unwrap();
            let mut total = total.view_mut(0..1, &[1]).unwrap();
            scale(&gpu, squares, [10.0, 1.0], &mut total, &mut view).unwrap();

            let mut state = [1.0_f32, 2.0, 3.0].map(|value| buffer(&gpu, &vec![value; COUNT]));
            let [params, m, v] = &mut state;
            let state_views = State {
                params: params.view_mut(0..COUNT, &[COUNT]).unwrap(),
                m: m.view_mut(0..COUNT, &[COUNT]).unwrap(),
                v: v.view_mut(0..COUNT, &[COUNT]).unwrap(),
                compute: None,
            };
            let hyper = AdamW {
                lr: 0.1,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                step: 1,
            };
            let factor = numbers.view(factor, &[1]).unwrap();
            assert!(factor.to_vec::<f64>().unwrap()[0].is_nan());
            adamw::step(state_views, gradients, factor, &hyper).unwrap();
            for (buffer, value) in state.iter().zip([1.0_f32, 2.0, 3.0]) {
                let found = buffer.view(0..COUNT, &[COUNT]).unwrap().to_vec::<f32>();
                assert_eq!(found.unwrap(), vec![value; COUNT]);
            }
        }
    }
}
