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

    /// The distribution function of the normal distribution, and exp(-x^2 / 2), which is its
    /// density but for a factor; in `f32` free of branches. `self` is between -12 and 12.
    fn normal(self) -> (Self, Self);

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

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        normal_f32(self)
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

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let distribution = 0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2);
        (distribution, (-0.5 * self * self).exp())
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
    // A NaN has none to scale: which bits it carries is not for arithmetic.
    if power.is_nan() {
        power
    } else {
        f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
    }
}

/// What the tail's argument is scaled by.
const TAIL_SCALE: f32 = 0.34;

/// Coefficients of t^8 .. 1 in the polynomial that [`normal_f32`] takes, interpolated at the
/// Chebyshev nodes of the t of |x| from 0 to 12. Relative error: 4.3e-8.
const TAIL_POLYNOMIAL: [f32; 9] = [
    -2.809_039_5e-2,
    1.487_954_3e-1,
    -2.917_176e-1,
    2.226_804_6e-1,
    -5.831_618_6e-2,
    1.208_970_25e-1,
    1.138_495_36e-1,
    1.362_911e-1,
    1.356_106_1e-1,
];

/// The tail beyond |x| is exp(-x^2 / 2) times a smooth function of |x|, which is t times a
/// polynomial of t with t = 1 / (1 + 0.34 |x|): the form of Abramowitz and Stegun's 7.1.26. Taken
/// from the tail, not from 1, the smallest values keep their digits too.
#[inline(always)]
fn normal_f32(x: f32) -> (f32, f32) {
    let bell = exp_f32(-0.5 * x * x);
    let t = 1.0 / (1.0 + TAIL_SCALE * x.abs());
    let mut sum = TAIL_POLYNOMIAL[0];
    for coefficient in &TAIL_POLYNOMIAL[1..] {
        sum = sum * t + coefficient;
    }
    let tail = bell * (sum * t);
    (if x > 0.0 { 1.0 - tail } else { tail }, bell)
}

#[cfg(test)]
mod tests {
    use super::{EXP_RANGE, Float, exp_f32, normal_f32};

    #[test]
    fn the_normal_distribution_is_within_a_few_units_in_the_last_place() {
        let steps = 240_000;
        for step in 0..=steps {
            let x = -12.0 + 24.0 * (step as f32 / steps as f32);
            let (found, bell) = normal_f32(x);
            let (exact, exact_bell) = f64::from(x).normal();
            // The exponential's argument is rounded: that is all that grows with x.
            let bound = 6e-7 + 5e-8 * f64::from(x * x);
            for (found, exact) in [(found, exact), (bell, exact_bell)] {
                let error = (f64::from(found) - exact).abs() / exact;
                assert!(error < bound, "at {x} off by {error:e} of {exact:e}");
            }
        }
        assert!(normal_f32(f32::NAN).0.is_nan());
    }

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
        for bits in [
            f32::NAN.to_bits(),
            0x7fc0_0001,
            0x7fff_ffff,
            0xffff_ffff,
            0x7f80_0001,
        ] {
            assert!(exp_f32(f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
        assert_eq!(exp_f32(0.0).to_bits(), 1.0_f32.to_bits());
        assert!((0.0..1.2e-38).contains(&exp_f32(f32::NEG_INFINITY)));
        assert!(exp_f32(1000.0) > 3.3e38 && exp_f32(1000.0).is_finite());
    }
}
