//! The two curves, and their slopes.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::float::Float;

/// A curve, in a type of its own so that loops over it have no branch inside.
pub(crate) trait Curve {
    /// The value at `x`.
    fn value<T: Float>(x: T) -> T;

    /// The value and the slope at `x`.
    fn value_and_slope<T: Float>(x: T) -> (T, T);
}

/// Outside of this both curves are 0 or x, but for 1e-30. Where powers or exponentials
/// are taken, x is held inside, so that nothing overflows and what is nearly 0 is not multiplied with
/// what is huge.
const RANGE: f64 = 12.0;

// Comparisons rather than `clamp`, which would cost loops their vectors on a NaN.
#[inline(always)]
fn not_below<T: Float>(x: T) -> T {
    if x < T::of(-RANGE) { T::of(-RANGE) } else { x }
}

#[inline(always)]
fn not_above<T: Float>(x: T) -> T {
    if x > T::of(RANGE) { T::of(RANGE) } else { x }
}

/// x * Phi(x).
pub(crate) struct Exact;

/// The approximation by a hyperbolic tangent.
pub(crate) struct Tanh;

impl Curve for Exact {
    #[inline(always)]
    fn value<T: Float>(x: T) -> T {
        Self::value_and_slope(x).0
    }

    /// The slope is Phi(x) + x * phi(x), with phi the normal density.
    #[inline(always)]
    fn value_and_slope<T: Float>(x: T) -> (T, T) {
        let above = not_below(x);
        let x = not_above(above);
        let (distribution, bell) = x.normal();
        // 1 / sqrt(2 pi) = (2 / sqrt(pi)) / (2 sqrt(2))
        let norm = T::of(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
        (above * distribution, distribution + x * (norm * bell))
    }
}

/// Of the cubic term.
const CUBIC: f64 = 0.044_715;

/// 2 sqrt(2 / pi): with it (1 + tanh(u)) / 2 is the sigmoid of 2 u.
const TWICE_ROOT: f64 = 2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

impl Curve for Tanh {
    #[inline(always)]
    fn value<T: Float>(x: T) -> T {
        Self::value_and_slope(x).0
    }

    /// With e = exp(-v), v = a x (1 + b x^2) and s = 1 / (1 + e) the sigmoid of v: the slope is
    /// s + x * s * (1 - s) * a (1 + 3 b x^2), in which 1 - s = e * s.
    #[inline(always)]
    fn value_and_slope<T: Float>(x: T) -> (T, T) {
        let above = not_below(x);
        let x = not_above(above);
        let square = x * x;
        let e = (-x * (T::of(TWICE_ROOT) + T::of(TWICE_ROOT * CUBIC) * square)).exp();
        let s = T::ONE / (T::ONE + e);
        let inner = T::of(TWICE_ROOT) + T::of(3.0 * TWICE_ROOT * CUBIC) * square;
        (above * s, s + x * s * (e * s) * inner)
    }
}
