//! The unit and its slope at one point.

use std::f64::consts::PI;

use super::Approximation;

/// gelu(x).
pub(crate) fn value(x: f64, approximation: Approximation) -> f64 {
    match approximation {
        Approximation::Exact => 0.5 * x * libm::erfc(-x / 2.0_f64.sqrt()),
        Approximation::Tanh => 0.5 * x * (1.0 + inner(x).tanh()),
    }
}

/// Its slope at x.
pub(crate) fn slope(x: f64, approximation: Approximation) -> f64 {
    match approximation {
        Approximation::Exact => {
            let density = (-x * x / 2.0).exp() / (2.0 * PI).sqrt();
            0.5 * libm::erfc(-x / 2.0_f64.sqrt()) + x * density
        }
        Approximation::Tanh => {
            let tanh = inner(x).tanh();
            let inner_slope = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
            0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope
        }
    }
}

fn inner(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))
}
