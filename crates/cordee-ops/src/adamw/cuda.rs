//! One launch over all four arrays.

use cordee_memory::{DType, View};

use super::{AdamW, Bf16State, Chances, Coefficients, OP, State};
use crate::{
    cuda::{Arg, Gpu, Grid, Source},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "adamw",
    text: concat!(
        include_str!("../random/philox.cuh"),
        include_str!("kernels.cu")
    ),
};

/// Threads of a block, and parameters of a thread.
const THREADS: usize = 256;
const PARAMETERS: usize = 4;
const PARAMETERS_BF16: usize = 8;

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
    let arrays: [Arg; 6] = [
        params.into(),
        m.into(),
        v.into(),
        gradients.into(),
        compute.into(),
        scale.into(),
    ];
    let arguments = [&arrays[..], &[(count as u64).into()], &constants(hyper)].concat();
    let kernel = gpu.kernel(OP, &SOURCE, numbers, "adamw")?;
    let grid = Grid::new(count.div_ceil(THREADS * PARAMETERS), THREADS);
    // SAFETY: all arrays have `count` elements, but for the copy, which may be null.
    unsafe { kernel.launch(grid, &arguments) }
}

/// As the kernels take them, behind all else.
fn constants(hyper: &AdamW) -> [Arg; 7] {
    let coefficients = Coefficients::new(hyper);
    [
        coefficients.keep,
        coefficients.beta2,
        coefficients.rest1,
        coefficients.rest2,
        coefficients.root_correction,
        coefficients.eps,
        coefficients.step_size,
    ]
    .map(|constant| Arg::from(constant as f32))
}

pub(super) fn step_bf16(
    gpu: &Gpu,
    state: Bf16State<'_>,
    chances: Chances,
    gradients: View<'_>,
    scale: View<'_>,
    hyper: &AdamW,
) -> Result<()> {
    let Bf16State {
        mut params,
        mut m,
        mut v,
    } = state;
    let (shape, count) = (gradients.shape(), gradients.len());
    let gradients = OP.parameter(gpu, "gradients", gradients, DType::F32, shape)?;
    let params = OP.parameter_mut(gpu, "params", &mut params, DType::Bf16, shape)?;
    let m = OP.parameter_mut(gpu, "m", &mut m, DType::Bf16, shape)?;
    let v = OP.parameter_mut(gpu, "v", &mut v, DType::Bf16, shape)?;
    let scale = OP.parameter(gpu, "scale", scale, DType::F64, &[1])?;
    let [seed, id] = chances.stream.parts();
    let arguments: [Arg; 9] = [
        params.into(),
        m.into(),
        v.into(),
        gradients.into(),
        scale.into(),
        (count as u64).into(),
        seed.into(),
        id.into(),
        chances.first.into(),
    ];
    let arguments = [&arguments[..], &constants(hyper)].concat();
    let kernel = gpu.kernel(OP, &SOURCE, DType::Bf16, "adamw_bf16")?;
    let grid = Grid::new(count.div_ceil(THREADS * PARAMETERS_BF16), THREADS);
    // SAFETY: all arrays have `count` elements.
    unsafe { kernel.launch(grid, &arguments) }
}

#[cfg(test)]
mod tests {
    use cordee_memory::{Buffer, Element};
    use half::bf16;

    use super::{
        super::{reference::step_bf16 as step_reference, step_bf16},
        *,
    };
    use crate::{GpuOptions, random::Stream, testing::normals};

    const COUNT: usize = 4_003;

    const HYPER: AdamW = AdamW {
        lr: 3e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
    };

    fn buffer<T: Element>(gpu: &Gpu, values: &[T]) -> Buffer {
        let mut host = Buffer::zeroed(T::DTYPE, values.len()).unwrap();
        host.as_mut_slice().unwrap().copy_from_slice(values);
        let mut buffer = gpu.zeroed(T::DTYPE, values.len()).unwrap();
        buffer.copy_from_host(&host).unwrap();
        buffer
    }

    fn singles(name: &str) -> Vec<f32> {
        let values = normals(name, COUNT).into_iter();
        values.map(|value| value as f32).collect()
    }

    /// Bit for bit, and however the range is cut: in odd places too.
    #[test]
    fn weights_and_moments_in_bf16_are_rounded_by_their_places() {
        if Gpu::count() == 0 {
            return;
        }
        let gpu = Gpu::open(0, &GpuOptions::default()).unwrap();
        let params: Vec<bf16> = singles("params").into_iter().map(bf16::from_f32).collect();
        let gradients = [singles("first"), singles("second")];
        let scale = buffer(&gpu, &[0.25_f64]);
        let scale = scale.view(0..1, &[1]).unwrap();
        let seed = 11;
        for cuts in [vec![0, COUNT], vec![0, 8, 1_001, 1_002, 3_000, COUNT]] {
            let mut held = buffer(&gpu, &params);
            let zeros = vec![bf16::ZERO; COUNT];
            let (mut m, mut v) = (buffer(&gpu, &zeros), buffer(&gpu, &zeros));
            for (number, gradients) in (1..).zip(&gradients) {
                let gradients = buffer(&gpu, gradients);
                for cut in cuts.windows(2) {
                    let (range, shape) = (cut[0]..cut[1], [cut[1] - cut[0]]);
                    let state = Bf16State {
                        params: held.view_mut(range.clone(), &shape).unwrap(),
                        m: m.view_mut(range.clone(), &shape).unwrap(),
                        v: v.view_mut(range.clone(), &shape).unwrap(),
                    };
                    let chances = Chances {
                        stream: Stream::new(seed, number),
                        first: cut[0] as u64,
                    };
                    let gradients = gradients.view(range, &shape).unwrap();
                    let hyper = AdamW {
                        step: number,
                        ..HYPER
                    };
                    step_bf16(state, chances, gradients, scale, &hyper).unwrap();
                }
            }
            let read = |buffer: &Buffer| {
                buffer
                    .to_host()
                    .unwrap()
                    .as_slice::<bf16>()
                    .unwrap()
                    .to_vec()
            };
            let (held, m, v) = (read(&held), read(&m), read(&v));
            for place in 0..COUNT {
                let found = [held[place], m[place], v[place]].map(bf16::to_f32);
                let mut expected = [params[place].to_f32(), 0.0, 0.0];
                for (number, gradients) in (1..).zip(&gradients) {
                    let hyper = AdamW {
                        step: number,
                        ..HYPER
                    };
                    let by = (Stream::new(seed, number), place as u64);
                    expected = step_reference(expected, 0.25 * gradients[place], by, &hyper);
                }
                let bits = |numbers: [f32; 3]| numbers.map(f32::to_bits);
                assert_eq!(bits(found), bits(expected), "{place} of {cuts:?}");
            }
        }
    }

    /// Changes far below the last bit arrive on the average.
    #[test]
    fn small_changes_are_not_lost() {
        if Gpu::count() == 0 {
            return;
        }
        let gpu = Gpu::open(0, &GpuOptions::default()).unwrap();
        let (ones, zeros) = (vec![bf16::ONE; COUNT], vec![bf16::ZERO; COUNT]);
        let (mut params, mut m, mut v) = (
            buffer(&gpu, &ones),
            buffer(&gpu, &zeros),
            buffer(&gpu, &zeros),
        );
        let gradients = buffer(&gpu, &vec![1.0_f32; COUNT]);
        let scale = buffer(&gpu, &[1.0_f64]);
        let (steps, lr) = (40, 1e-4);
        for number in 1..=steps {
            let state = Bf16State {
                params: params.view_mut(0..COUNT, &[COUNT]).unwrap(),
                m: m.view_mut(0..COUNT, &[COUNT]).unwrap(),
                v: v.view_mut(0..COUNT, &[COUNT]).unwrap(),
            };
            let chances = Chances {
                stream: Stream::new(5, number),
                first: 0,
            };
            let hyper = AdamW {
                lr,
                weight_decay: 0.0,
                step: number,
                ..HYPER
            };
            let gradients = gradients.view(0..COUNT, &[COUNT]).unwrap();
            let scale = scale.view(0..1, &[1]).unwrap();
            step_bf16(state, chances, gradients, scale, &hyper).unwrap();
        }
        let params = params.to_host().unwrap();
        let params = params.as_slice::<bf16>().unwrap().iter();
        let mean = params.map(|param| param.to_f64()).sum::<f64>() / COUNT as f64;
        // Each step is lr; the spacing below 1 is 2^-8, 39 times that. To the nearest all would stay 1.
        let moved = (1.0 - mean) / (steps as f64 * lr);
        assert!((moved - 1.0).abs() < 0.1, "moved {moved} of what was asked");
    }
}
