//! silu(gate) * up at one point.

/// The value.
pub(crate) fn value(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// The slopes in gate and up.
pub(crate) fn slopes(gate: f64, up: f64) -> (f64, f64) {
    let sigmoid = 1.0 / (1.0 + (-gate).exp());
    let dgate = sigmoid + gate * sigmoid * (1.0 - sigmoid);
    (up * dgate, gate * sigmoid)
}
