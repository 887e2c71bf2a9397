//! What the tests of operators share: inputs, and the claims every operator is held to.

use crate::{float::Float, operand::Operator};
use candle_core::{DType, Device, Tensor, Var};

pub(crate) use crate::conformance::normals;

/// Named results of a call, in the widest type; f32 fits without loss.
pub(crate) type Outcome = Vec<(&'static str, Vec<f64>)>;

const OP: Operator = Operator("test");

/// The numbers in another type.
pub(crate) fn cast<T: Float>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::of(value)).collect()
}

/// A tensor of the numbers.
pub(crate) fn tensor<T: Float>(values: &[f64], shape: &[usize]) -> Tensor {
    OP.output(cast::<T>(values), shape).unwrap()
}

/// The numbers of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The numbers of a slice.
pub(crate) fn widen<T: Float>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.wide()).collect()
}

/// A leaf of candle's autograd.
pub(crate) fn leaf(values: &[f64], shape: &[usize]) -> Var {
    Var::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

/// candle's gradients of the sum of `y` * `dy`.
pub(crate) fn autograd(y: &Tensor, dy: &[f64], leaves: &[&Var]) -> Vec<Vec<f64>> {
    let dy = tensor::<f64>(dy, y.dims());
    let gradients = (y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    leaves
        .iter()
        .map(|leaf| values(gradients.get(leaf).unwrap()))
        .collect()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Every result is within `tolerance` of the expected one, relative to the largest expected number
/// of that name.
pub(crate) fn assert_close(found: &Outcome, expected: &Outcome, tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for ((name, found), (expected_name, expected)) in found.iter().zip(expected) {
        assert_eq!((name, found.len()), (expected_name, expected.len()));
        let largest = expected
            .iter()
            .fold(0.0_f64, |largest, value| largest.max(value.abs()));
        assert!(
            largest > 0.0,
            "`{name}` is 0 everywhere: the test sees nothing"
        );
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (found - expected).abs() / largest;
            assert!(
                error <= tolerance,
                "`{name}`[{index}] is {found}, expected {expected}: off by {error:e} of the largest"
            );
        }
    }
}

/// The same bits with 1, 2 and 4 threads.
pub(crate) fn assert_thread_independent(run: impl Fn() -> Outcome + Sync) {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(&run)
    };
    let bits = |outcome: Outcome| -> Vec<_> {
        let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        outcome
            .into_iter()
            .map(|(name, values)| (name, bits(values)))
            .collect()
    };
    let one = bits(with(1));
    for threads in [2, 4] {
        assert!(
            one == bits(with(threads)),
            "{threads} threads give other bits than 1"
        );
    }
}

/// The gradients are the slopes of `loss`, by central differences in each element of each input.
pub(crate) fn assert_gradients(
    inputs: &[Vec<f64>],
    gradients: &[Vec<f64>],
    loss: impl Fn(&[Vec<f64>]) -> f64,
) {
    const STEP: f64 = 1e-5;
    assert_eq!(inputs.len(), gradients.len());
    let mut moved = inputs.to_vec();
    for (input, gradient) in gradients.iter().enumerate() {
        assert_eq!(
            inputs[input].len(),
            gradient.len(),
            "gradient of input {input}"
        );
        for (element, &gradient) in gradient.iter().enumerate() {
            let mut at = |offset: f64| {
                moved[input][element] = inputs[input][element] + offset;
                loss(&moved)
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            at(0.0);
            assert!(
                (slope - gradient).abs() <= 1e-7 * (1.0 + gradient.abs()),
                "input {input}, element {element}: slope {slope}, gradient {gradient}"
            );
        }
    }
}
