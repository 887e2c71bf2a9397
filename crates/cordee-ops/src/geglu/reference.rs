//! gelu(gate) * up at one point.

use crate::gelu::{Approximation, reference};

/// The value.
pub(crate) fn value(gate: f64, up: f64, approximation: Approximation) -> f64 {
    reference::value(gate, approximation) * up
}

/// The slopes in gate and up.
pub(crate) fn slopes(gate: f64, up: f64, approximation: Approximation) -> (f64, f64) {
    (
        reference::slope(gate, approximation) * up,
        reference::value(gate, approximation),
    )
}
