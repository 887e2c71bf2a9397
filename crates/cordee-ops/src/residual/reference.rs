//! The sum at one point.

/// The value.
pub(crate) fn value(x: f64, added: f64) -> f64 {
    x + added
}
