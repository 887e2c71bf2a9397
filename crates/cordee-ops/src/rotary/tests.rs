use candle_core::{D, Tensor};

use super::{Scaling, Table, apply, apply_backward};
use crate::{
    Sequences,
    float::Float,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, dot, leaf,
        normals, tensor, values,
    },
};

const THETA: f64 = 10_000.0;

/// x is `[2 len, heads, head_dim]`.
fn ours<T: Float>(x: &[f64], [len, heads, head_dim]: [usize; 3]) -> Outcome {
    let shape = [2 * len, heads, head_dim];
    let table = Table::new(head_dim, len, THETA, Scaling::None).unwrap();
    let sequences = Sequences::Rows(len);
    let y = apply(&tensor::<T>(x, &shape), sequences, &table).unwrap();
    let dy = tensor::<T>(&normals("dy", x.len()), &shape);
    let dx = apply_backward(&dy, sequences, &table).unwrap();
    vec![("y", values(&y)), ("dx", values(&dx))]
}

#[test]
fn gradients_are_slopes() {
    let sizes = [3, 3, 6];
    let x = normals("x", 2 * 3 * 3 * 6);
    let dy = normals("dy", x.len());
    let dx = ours::<f64>(&x, sizes)[1].1.clone();
    assert_gradients(&[x], &[dx], |x| dot(&ours::<f64>(&x[0], sizes)[0].1, &dy));
}

/// The convention as Hugging Face writes it: x cos + `rotate_half`(x) sin, cos and sin repeated.
#[test]
fn agrees_with_autograd() {
    let (len, heads, head_dim) = (100, 3, 10);
    let x_values = normals("x", 2 * len * heads * head_dim);
    let x = leaf(&x_values, &[2 * len, heads, head_dim]);
    let half = head_dim / 2;
    let angles: Vec<f64> = (0..2 * len * head_dim)
        .map(|i| {
            (i / head_dim % len) as f64 / THETA.powf((i % half) as f64 * 2.0 / head_dim as f64)
        })
        .collect();
    let angles = tensor::<f64>(&angles, &[2 * len, 1, head_dim]);
    let first = x.narrow(D::Minus1, 0, half).unwrap();
    let second = x.narrow(D::Minus1, half, half).unwrap();
    let rotated = Tensor::cat(&[&second.neg().unwrap(), &first], 2).unwrap();
    let plain = x.broadcast_mul(&angles.cos().unwrap()).unwrap();
    let y = (plain + rotated.broadcast_mul(&angles.sin().unwrap()).unwrap()).unwrap();
    let dx = autograd(&y, &normals("dy", x_values.len()), &[&x]).remove(0);
    let expected = vec![("y", values(&y)), ("dx", dx)];
    assert_close(
        &ours::<f64>(&x_values, [len, heads, head_dim]),
        &expected,
        1e-13,
    );
    assert_close(
        &ours::<f32>(&x_values, [len, heads, head_dim]),
        &expected,
        1e-6,
    );
}

#[test]
fn positions_begin_anew_in_each_document() {
    let table = Table::new(4, 8, THETA, Scaling::None).unwrap();
    let x = normals("x", 5 * 8);
    let whole = tensor::<f32>(&x, &[5, 2, 4]);
    let documents = apply(&whole, Sequences::Documents(&[0, 1, 5]), &table).unwrap();
    let first = apply(
        &tensor::<f32>(&x[..8], &[1, 2, 4]),
        Sequences::Rows(1),
        &table,
    );
    let second = apply(
        &tensor::<f32>(&x[8..], &[4, 2, 4]),
        Sequences::Rows(4),
        &table,
    );
    let parts = [values(&first.unwrap()), values(&second.unwrap())].concat();
    assert_eq!(values(&documents), parts);
}

/// The frequency of each pair, read from the angle of position 1.
fn frequencies(head_dim: usize, theta: f64, scaling: Scaling) -> Vec<f64> {
    let table = Table::new(head_dim, 2, theta, scaling).unwrap();
    let half = head_dim / 2;
    let ones: Vec<f64> = (0..2 * head_dim)
        .map(|i| f64::from(u8::from(i % head_dim < half)))
        .collect();
    let x = tensor::<f64>(&ones, &[2, 1, head_dim]);
    let y = values(&apply(&x, Sequences::Rows(2), &table).unwrap());
    let rotated = &y[head_dim..];
    (0..half)
        .map(|i| rotated[half + i].atan2(rotated[i]))
        .collect()
}

/// `_compute_llama3_parameters` of transformers, line by line.
#[test]
fn llama3_frequencies_are_those_of_transformers() {
    let (factor, low, high, original) = (8.0, 1.0, 4.0, 8192);
    let found = frequencies(
        128,
        500_000.0,
        Scaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions: original,
        },
    );
    let original = original as f64;
    let (mut kept, mut divided, mut smoothed) = (0, 0, 0);
    for (i, found) in found.into_iter().enumerate() {
        let frequency = 1.0 / 500_000.0_f64.powf(2.0 * i as f64 / 128.0);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let expected = if wavelength > original / low {
            divided += 1;
            frequency / factor
        } else if wavelength < original / high {
            kept += 1;
            frequency
        } else {
            smoothed += 1;
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        };
        assert!((found - expected).abs() <= 1e-13 * expected, "pair {i}");
    }
    assert!(kept > 0 && divided > 0 && smoothed > 0);
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let plain = frequencies(16, THETA, Scaling::None);
    let scaled = frequencies(16, THETA, Scaling::Linear { factor: 4.0 });
    for (plain, scaled) in plain.into_iter().zip(scaled) {
        assert!((4.0 * scaled - plain).abs() < 1e-14);
    }
}

#[test]
fn rotating_back_restores() {
    let table = Table::new(8, 64, THETA, Scaling::None).unwrap();
    let x = tensor::<f64>(&normals("x", 64 * 8), &[64, 1, 8]);
    let y = apply(&x, Sequences::Rows(64), &table).unwrap();
    let back = apply_backward(&y, Sequences::Rows(64), &table).unwrap();
    assert_close(&vec![("x", values(&back))], &vec![("x", values(&x))], 1e-14);
}

#[test]
fn threads_do_not_matter() {
    let x = normals("x", 2 * 300 * 3 * 16);
    assert_thread_independent(|| ours::<f32>(&x, [300, 3, 16]));
}

#[test]
fn wrong_calls_are_named() {
    let message = |result: crate::Result<Tensor>| result.unwrap_err().to_string();
    let table = Table::new(4, 8, THETA, Scaling::None).unwrap();
    let x = tensor::<f32>(&[0.0; 72], &[9, 2, 4]);
    let error = message(apply(&x, Sequences::Rows(9), &table));
    assert!(
        error.starts_with("rotary: position 8 of token 8 is outside a table of 8"),
        "{error}"
    );
    let documents = Sequences::Documents(&[0, 0, 9]);
    let error = message(apply(&x, documents, &table));
    assert!(
        error.starts_with("rotary: document bound 1 is 0"),
        "{error}"
    );
    let error = message(apply(&x, Sequences::Rows(4), &table));
    assert_eq!(
        error,
        "rotary: `tokens` has shape [9], expected whole sequences of 4 tokens"
    );
    let error = message(apply(&x.flatten_all().unwrap(), Sequences::Rows(9), &table));
    let expected = "[tokens, heads, head_dim]";
    assert_eq!(
        error,
        format!("rotary: `x` has shape [72], expected {expected}")
    );
    let error = Table::new(5, 8, THETA, Scaling::None)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "rotary: `head_dim` is 5, expected an even number above 0"
    );
    let scaling = Scaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 4.0,
        high_freq_factor: 4.0,
        original_max_positions: 64,
    };
    let error = Table::new(4, 8, THETA, scaling).unwrap_err().to_string();
    assert_eq!(
        error,
        "rotary: `high_freq_factor` is 4, expected a number above low_freq_factor"
    );
}
