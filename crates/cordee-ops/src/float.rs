//! The numbers that operators compute in: `f32` for training, `f64` for gradient checks.

use std::ops::Neg;

use candle_core::WithDType;
use cordee_memory::Element;

/// A real number. The four operations come from candle's trait; its conversions are passed over
/// for ones that are inlined, because loops call them for every element.
pub(crate) trait Float: Element + WithDType + Neg<Output = Self> {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;

    /// The nearest number to `value`.
    fn of(value: f64) -> Self;

    /// The same number in `f64`.
    fn wide(self) -> f64;

    /// e to the power `self`, free of branches so that loops over it are vectorised.
    fn exp(self) -> Self;

    /// The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to `self`.
    fn erf(self) -> Self;

    /// The square root.
    fn sqrt(self) -> Self;

    /// Whether it is neither infinite nor a NaN.
    fn is_finite(self) -> bool;
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        exp_f32(self)
    }

    #[inline]
    fn erf(self) -> Self {
        libm::erff(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    #[inline(always)]
    fn exp(self) -> Self {
        self.exp()
    }

    #[inline]
    fn erf(self) -> Self {
        libm::erf(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

/// The range in which the result is a normal number; outside it the nearest end is taken, so the
/// result is never 0 and never infinite. A NaN stays a NaN.
const EXP_RANGE: (f32, f32) = (-87.33, 88.72);

/// Adding it to a small number rounds that number to an integer, which is then found in the lowest
/// bits: 1.5 * 2^23.
const ROUND_TO_INTEGER: f32 = 12_582_912.0;

/// Coefficients of r^2 .. r^7 in the polynomial of Cephes' `expf` (Moshier), highest first.
const EXP_POLYNOMIAL: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_6e-1,
    0.5,
];

/// ln 2 in two parts: the first has so few bits that multiples of it are exact.
const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

/// exp(x) = 2^n exp(r) with n an integer and |r| <= ln(2)/2; within 2 units in the last place.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // Comparisons rather than `clamp`, which would cost the loop its vectors on a NaN.
    let x = if x < EXP_RANGE.0 { EXP_RANGE.0 } else { x };
    let x = if x > EXP_RANGE.1 { EXP_RANGE.1 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND_TO_INTEGER;
    let n = shifted - ROUND_TO_INTEGER;
    let r = (x - n * LN_2.0) - n * LN_2.1;
    let mut sum = EXP_POLYNOMIAL[0];
    for coefficient in &EXP_POLYNOMIAL[1..] {
        sum = sum * r + coefficient;
    }
    let power = sum * r * r + r + 1.0;
    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::{EXP_RANGE, exp_f32};

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let (low, high) = EXP_RANGE;
        let steps = 2_000_000;
        for step in 0..=steps {
            let x = low + (high - low) * (step as f32 / steps as f32);
            let exact = f64::from(x).exp();
            let unit = f64::from(exact as f32) * f64::from(f32::EPSILON);
            let error = (f64::from(exp_f32(x)) - exact).abs() / unit;
            assert!(error < 2.0, "exp({x}) is off by {error} units");
        }
    }

    #[test]
    fn exp_of_the_extremes() {
        assert!(exp_f32(f32::NAN).is_nan());
        assert_eq!(exp_f32(0.0).to_bits(), 1.0_f32.to_bits());
        assert!((0.0..1.2e-38).contains(&exp_f32(f32::NEG_INFINITY)));
        assert!(exp_f32(1000.0) > 3.3e38 && exp_f32(1000.0).is_finite());
    }
}
