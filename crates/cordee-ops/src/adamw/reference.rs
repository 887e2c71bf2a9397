//! One parameter's step, as algorithm 2 of the paper has it, with the decay first as in PyTorch.

use super::AdamW;

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
