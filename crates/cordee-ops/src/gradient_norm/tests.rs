use cordee_memory::View;

use super::{first_non_finite, sum_of_squares};
use crate::testing::{assert_thread_independent, cast, dot, normals};

fn sum(values: &[f32]) -> f64 {
    sum_of_squares(View::from_slice(values, &[values.len()]).unwrap()).unwrap()
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
