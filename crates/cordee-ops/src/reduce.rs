//! Sums over contiguous slices: in lanes inside a block, in `f64` over the blocks. The order of
//! additions depends on the length alone. All are inlined into loops that are compiled for the
//! processor's vectors (`simd`).

use crate::float::Float;

/// Independent sums, enough to fill the vector registers of any CPU.
const LANES: usize = 16;

/// Elements that are summed in their own type before `f64` takes over; a lane adds 32 of them.
const BLOCK: usize = 512;

/// The sum of `f(a, b)` over two slices of one length.
#[inline(always)]
pub(crate) fn sum_of<T: Float>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> f64 {
    debug_assert_eq!(a.len(), b.len());
    let mut total = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut lanes = [T::ZERO; LANES];
        let (a, a_rest) = a.as_chunks::<LANES>();
        let (b, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for (lane, (&a, &b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                *lane += f(a, b);
            }
        }
        for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *lane += f(a, b);
        }
        total += lanes.iter().map(|lane| lane.wide()).sum::<f64>();
    }
    total
}

/// The sum of `values`.
#[inline(always)]
pub(crate) fn sum<T: Float>(values: &[T]) -> f64 {
    sum_of(values, values, |value, _| value)
}

/// The sum of products of `a` and `b`, of one length.
#[inline(always)]
pub(crate) fn dot<T: Float>(a: &[T], b: &[T]) -> f64 {
    sum_of(a, b, |a, b| a * b)
}

/// Replaces each of `values` by the exponential of its difference from `largest`, and returns the
/// sum of them.
#[inline(always)]
pub(crate) fn exponentials<T: Float>(values: &mut [T], largest: T) -> f64 {
    let mut total = 0.0;
    for block in values.chunks_mut(BLOCK) {
        let mut lanes = [T::ZERO; LANES];
        let (block, rest) = block.as_chunks_mut::<LANES>();
        for values in block {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *value = (*value - largest).exp();
                *lane += *value;
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *value = (*value - largest).exp();
            *lane += *value;
        }
        total += lanes.iter().map(|lane| lane.wide()).sum::<f64>();
    }
    total
}

/// The largest of `values`, which are not empty. NaNs are passed over: whoever uses the result
/// meets them again.
#[inline(always)]
pub(crate) fn max<T: Float>(values: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [values[0]; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    let largest = lanes.into_iter().fold(values[0], larger);
    rest.iter().copied().fold(largest, larger)
}

#[cfg(test)]
mod tests {
    use super::{dot, max, sum};

    #[test]
    fn sums_of_f32_are_good_to_its_last_places() {
        for len in [1, 15, 16, 17, 511, 512, 513, 100_003] {
            let values: Vec<f32> = (0..len).map(|i| 1.0 + (i % 97) as f32 / 97.0).collect();
            let wide: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
            let exact: f64 = wide.iter().sum();
            let squares: f64 = wide.iter().map(|value| value * value).sum();
            assert!((sum(&values) - exact).abs() < 1e-6 * exact, "sum of {len}");
            assert!(
                (dot(&values, &values) - squares).abs() < 1e-6 * squares,
                "squares of {len}"
            );
        }
    }

    #[test]
    fn the_largest_is_found_wherever_it_stands() {
        for len in [1, 16, 33] {
            for at in 0..len {
                let mut values = vec![-3.0_f32; len];
                values[at] = -1.0;
                assert_eq!(
                    max(&values).to_bits(),
                    (-1.0_f32).to_bits(),
                    "{at} of {len}"
                );
            }
        }
    }
}
