use candle_core::Tensor;

use super::{
    Approximation::{self, Exact, Tanh},
    backward, forward,
};
use crate::{
    float::Float,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, dot, leaf,
        normals, tensor, values,
    },
};

/// A few times wider than usual.
fn inputs(count: usize) -> Vec<f64> {
    normals("x", count)
        .iter()
        .map(|value| 3.0 * value)
        .collect()
}

fn ours<T: Float>(x: &[f64], approximation: Approximation) -> Outcome {
    let shape = [x.len() / 5, 5];
    let dy = tensor::<T>(&normals("dy", x.len()), &shape);
    let x = tensor::<T>(x, &shape);
    let y = forward(&x, approximation).unwrap();
    let dx = backward(&dy, &x, approximation).unwrap();
    vec![("y", values(&y)), ("dx", values(&dx))]
}

#[test]
fn gradients_are_slopes() {
    let (x, dy) = (inputs(35), normals("dy", 35));
    for approximation in [Exact, Tanh] {
        let dx = ours::<f64>(&x, approximation)[1].1.clone();
        assert_gradients(std::slice::from_ref(&x), &[dx], |x| {
            dot(&ours::<f64>(&x[0], approximation)[0].1, &dy)
        });
    }
}

#[test]
fn agrees_with_autograd() {
    let inputs = inputs(50_000);
    for approximation in [Exact, Tanh] {
        let x = leaf(&inputs, &[50_000]);
        let inner: Tensor = match approximation {
            Exact => (x.as_tensor() / 2.0_f64.sqrt()).unwrap().erf().unwrap(),
            Tanh => {
                let cubic = (x.powf(3.0).unwrap() * 0.044_715).unwrap();
                let inner = (x.as_tensor() + cubic).unwrap() * (2.0 / std::f64::consts::PI).sqrt();
                inner.unwrap().tanh().unwrap()
            }
        };
        let y = ((x.as_tensor() * 0.5).unwrap() * (inner + 1.0).unwrap()).unwrap();
        let dx = autograd(&y, &normals("dy", 50_000), &[&x]).remove(0);
        let expected = vec![("y", values(&y)), ("dx", dx)];
        assert_close(&ours::<f64>(&inputs, approximation), &expected, 1e-13);
        assert_close(&ours::<f32>(&inputs, approximation), &expected, 1e-6);
    }
}

#[test]
fn the_two_are_told_apart() {
    let x = inputs(5000);
    let difference = ours::<f64>(&x, Exact)[0]
        .1
        .iter()
        .zip(&ours::<f64>(&x, Tanh)[0].1)
        .fold(0.0_f64, |largest, (exact, tanh)| {
            largest.max((exact - tanh).abs())
        });
    assert!((4e-4..5e-4).contains(&difference), "{difference}");
}

#[test]
fn extremes_stay_finite() {
    let extremes = [-3e38, -1e13, -1000.0, -90.0, 0.0, 90.0, 1000.0, 1e13, 3e38];
    let x = tensor::<f32>(&extremes, &[9]);
    let ones = tensor::<f32>(&[1.0; 9], &[9]);
    for approximation in [Exact, Tanh] {
        for (y, x) in values(&forward(&x, approximation).unwrap())
            .iter()
            .zip(extremes)
        {
            let expected = f64::from(x.max(0.0) as f32);
            assert!(
                (y - expected).abs() <= 1.0e-7 * expected.max(1.0),
                "{x}: {y}"
            );
        }
        for (dx, x) in values(&backward(&ones, &x, approximation).unwrap())
            .iter()
            .zip(extremes)
        {
            let expected = if x == 0.0 {
                0.5
            } else {
                f64::from(u8::from(x > 0.0))
            };
            assert!((dx - expected).abs() <= 1e-7, "{x}: {dx}");
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let x = inputs(50_000);
    for approximation in [Exact, Tanh] {
        assert_thread_independent(|| ours::<f32>(&x, approximation));
    }
}

#[test]
fn shapes_must_agree() {
    let (x, dy) = (
        tensor::<f32>(&[0.0; 4], &[4]),
        tensor::<f32>(&[0.0; 4], &[2, 2]),
    );
    let error = backward(&dy, &x, Exact).unwrap_err().to_string();
    assert_eq!(error, "gelu: `dy` has shape [2, 2], expected [4]");
}
