//! What more than one operator does element by element.

use crate::{float::Float, simd::vectorised};

/// Elements of a task: a few arrays of them fit in a core's cache.
pub(crate) const BLOCK: usize = 16 * 1024;

vectorised! {
    /// a + b.
    pub(crate) fn add<T: Float>(sum: &mut [T], a: &[T], b: &[T]) {
        for (sum, (&a, &b)) in sum.iter_mut().zip(a.iter().zip(b)) {
            *sum = a + b;
        }
    }

    /// values * factor, in place.
    pub(crate) fn scale<T: Float>(values: &mut [T], factor: T) {
        for value in values {
            *value *= factor;
        }
    }
}
