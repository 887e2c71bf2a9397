use cordee_memory::{View, ViewMut};

use super::{clip_factor, first_non_finite, scale, sum_of_squares};
use crate::testing::{assert_thread_independent, cast, dot, normals};

fn sum(values: &[f32]) -> f64 {
    let mut sum = [f64::NAN];
    let values = View::from_slice(values, &[values.len()]).unwrap();
    sum_of_squares(values, &mut ViewMut::from_slice(&mut sum, &[1]).unwrap()).unwrap();
    sum[0]
}

fn scale_of(sum: f64, tokens: f64, max_norm: f64) -> f64 {
    total_and_scale(&[sum], tokens, max_norm)[1]
}

fn total_and_scale(squares: &[f64], tokens: f64, max_norm: f64) -> [f64; 2] {
    let (mut total, mut found) = ([f64::NAN], [f64::NAN]);
    let squares = View::from_slice(squares, &[squares.len()]).unwrap();
    let mut summed = ViewMut::from_slice(&mut total, &[1]).unwrap();
    let mut view = ViewMut::from_slice(&mut found, &[1]).unwrap();
    scale(squares, tokens, max_norm, &mut summed, &mut view).unwrap();
    [total[0], found[0]]
}

fn first(values: &[f32]) -> Option<usize> {
    first_non_finite(View::from_slice(values, &[values.len()]).unwrap()).unwrap()
}

#[test]
fn sums_are_exact_to_f64() {
    for len in [0, 1, 17, 16 * 1024, 50_001] {
        let wide = normals("values", len);
        let exact = dot(&wide, &wide);
        assert!(
            (sum(&cast(&wide)) - exact).abs() <= 1e-12 * exact,
            "{len} elements"
        );
    }
    assert!(
        (sum(&[1e30; 3]) - 3e60).abs() < 1e54,
        "squares must not overflow in f32"
    );
}

#[test]
fn threads_do_not_matter() {
    let values = cast::<f32>(&normals("values", 200_000));
    assert_thread_independent(|| vec![("sum", vec![sum(&values)])]);
}

#[test]
fn the_first_bad_element_is_found() {
    let mut values = cast::<f32>(&normals("values", 50_001));
    assert_eq!(first(&values), None);
    for (at, bad) in [
        (50_000, f32::NAN),
        (33_000, f32::INFINITY),
        (5, f32::NEG_INFINITY),
    ] {
        values[at] = bad;
        assert_eq!(first(&values), Some(at));
        assert!(!sum(&values).is_finite());
    }
}

#[test]
fn clipping_scales_down_and_never_up() {
    assert!((clip_factor(1.0, 4.0) - 0.25).abs() < 1e-6);
    assert!((clip_factor(1.0, 0.5) - 1.0).abs() < f64::EPSILON);
    assert!((clip_factor(0.0, 1e9) - 1.0).abs() < f64::EPSILON);
}

#[test]
fn a_scale_divides_by_the_tokens_and_clips_the_mean() {
    let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-6);
    // The mean's norm is 4, then 0.5.
    close(scale_of(1600.0, 10.0, 1.0), 0.025);
    close(scale_of(25.0, 10.0, 1.0), 0.1);
    close(scale_of(1600.0, 10.0, 0.0), 0.1);
    for sum in [f64::NAN, f64::INFINITY] {
        assert!(scale_of(sum, 10.0, 1.0).is_nan());
        assert!(scale_of(sum, 10.0, 0.0).is_nan());
    }
}

#[test]
fn wrong_calls_are_named() {
    let (values, mut sums) = ([1.0_f32; 3], [0.0_f64; 2]);
    let values = View::from_slice(&values, &[3]).unwrap();
    let mut sums = ViewMut::from_slice(&mut sums, &[2]).unwrap();
    assert_eq!(
        sum_of_squares(values, &mut sums).unwrap_err().to_string(),
        "gradient_norm: `sum` has shape [2], expected [1]"
    );
    let mut narrow = [0.0_f32];
    let mut narrow = ViewMut::from_slice(&mut narrow, &[1]).unwrap();
    assert_eq!(
        sum_of_squares(values, &mut narrow).unwrap_err().to_string(),
        "gradient_norm: `sum` holds f32, expected f64"
    );
}

#[test]
fn parts_are_added_in_order() {
    let parts = [1e16, 1.0, -1e16, 9.0];
    let [total, scale] = total_and_scale(&parts, 2.0, 1.0);
    // 1e16 + 1 is 1e16 again.
    assert_eq!(total.to_bits(), 9.0_f64.to_bits());
    assert_eq!(scale.to_bits(), scale_of(9.0, 2.0, 1.0).to_bits());
}
