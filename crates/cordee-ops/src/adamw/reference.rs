//! One parameter's step, as algorithm 2 of the paper has it, with the decay first as in PyTorch.

use super::{AdamW, Coefficients};
use crate::random::Stream;

/// The parameter and its two moments after one step on `gradient`, scaled.
pub(crate) fn step([param, m, v]: [f64; 3], gradient: f64, hyper: &AdamW) -> [f64; 3] {
    let number = hyper.step as f64;
    let m = hyper.beta1 * m + (1.0 - hyper.beta1) * gradient;
    let v = hyper.beta2 * v + (1.0 - hyper.beta2) * gradient * gradient;
    let m_hat = m / (1.0 - hyper.beta1.powf(number));
    let v_hat = v / (1.0 - hyper.beta2.powf(number));
    let param = param - hyper.lr * hyper.weight_decay * param;
    let param = param - hyper.lr * m_hat / (v_hat.sqrt() + hyper.eps);
    [param, m, v]
}

/// The same of numbers that are kept in bf16, in `f32` operation by operation: which way a number is
/// rounded depends on its last bit. `place` is the parameter's among all.
pub(crate) fn step_bf16(
    [mut param, mut m, mut v]: [f32; 3],
    gradient: f32,
    (stream, place): (Stream, u64),
    hyper: &AdamW,
) -> [f32; 3] {
    let c = Coefficients::new(hyper);
    m = (gradient - m).mul_add(c.rest1 as f32, m);
    v = v.mul_add(c.beta2 as f32, gradient * gradient * c.rest2 as f32);
    let denominator = v.sqrt() / c.root_correction as f32 + c.eps as f32;
    let change = -(c.step_size as f32) * (m / denominator);
    param = param.mul_add(c.keep as f32, change);
    let [first, second, third, _] = stream.block(place / 2);
    let half = 16 * (place % 2);
    // Up by as much as falls behind the 16 bits that are kept, and cut off there.
    let rounded =
        |x: f32, word: u32| f32::from_bits((x.to_bits() + ((word >> half) & 0xffff)) & 0xffff_0000);
    [rounded(param, first), rounded(m, second), rounded(v, third)]
}
