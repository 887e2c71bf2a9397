use candle_core::{D, Tensor};

use super::{Positions, Table, apply, apply_backward};
use crate::{
    float::Float,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, dot, leaf,
        normals, tensor, values,
    },
};

const THETA: f64 = 10_000.0;

/// x is `[2, len, heads, head_dim]`.
fn ours<T: Float>(x: &[f64], [len, heads, head_dim]: [usize; 3]) -> Outcome {
    let shape = [2, len, heads, head_dim];
    let table = Table::new(head_dim, len, THETA).unwrap();
    let positions = Positions::Rows(len);
    let y = apply(&tensor::<T>(x, &shape), positions, &table).unwrap();
    let dy = tensor::<T>(&normals("dy", x.len()), &shape);
    let dx = apply_backward(&dy, positions, &table).unwrap();
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
    let x = leaf(&x_values, &[2, len, heads, head_dim]);
    let half = head_dim / 2;
    let angles: Vec<f64> = (0..len * head_dim)
        .map(|i| (i / head_dim) as f64 / THETA.powf((i % half) as f64 * 2.0 / head_dim as f64))
        .collect();
    let angles = tensor::<f64>(&angles, &[1, len, 1, head_dim]);
    let first = x.narrow(D::Minus1, 0, half).unwrap();
    let second = x.narrow(D::Minus1, half, half).unwrap();
    let rotated = Tensor::cat(&[&second.neg().unwrap(), &first], 3).unwrap();
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
fn given_positions_are_used() {
    let table = Table::new(4, 8, THETA).unwrap();
    let x = tensor::<f32>(&normals("x", 5 * 8), &[5, 2, 4]);
    let rows = apply(&x, Positions::Rows(5), &table).unwrap();
    let each = apply(&x, Positions::Each(&[0, 1, 2, 3, 4]), &table).unwrap();
    assert_eq!(values(&rows), values(&each));
    let others = apply(&x, Positions::Each(&[0, 1, 7, 3, 4]), &table).unwrap();
    assert_eq!(values(&rows)[..16], values(&others)[..16]);
    assert_ne!(values(&rows)[16..24], values(&others)[16..24]);
    assert_eq!(values(&rows)[24..], values(&others)[24..]);
}

#[test]
fn rotating_back_restores() {
    let table = Table::new(8, 64, THETA).unwrap();
    let x = tensor::<f64>(&normals("x", 64 * 8), &[64, 1, 8]);
    let y = apply(&x, Positions::Rows(64), &table).unwrap();
    let back = apply_backward(&y, Positions::Rows(64), &table).unwrap();
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
    let table = Table::new(4, 8, THETA).unwrap();
    let x = tensor::<f32>(&[0.0; 72], &[9, 2, 4]);
    let error = message(apply(&x, Positions::Rows(9), &table));
    assert!(
        error.starts_with("rotary: position 8 of token 8 is outside a table of 8"),
        "{error}"
    );
    let error = message(apply(
        &x,
        Positions::Each(&[0, 0, 9, 0, 0, 0, 0, 0, 0]),
        &table,
    ));
    assert!(
        error.starts_with("rotary: position 9 of token 2 is outside a table of 8"),
        "{error}"
    );
    let error = message(apply(&x, Positions::Each(&[0]), &table));
    assert_eq!(error, "rotary: `positions` has shape [1], expected [9]");
    let error = message(apply(&x, Positions::Rows(4), &table));
    assert_eq!(
        error,
        "rotary: `x` has shape [9], expected whole sequences of 4 tokens"
    );
    let error = message(apply(&x.flatten_all().unwrap(), Positions::Rows(9), &table));
    let expected = "[tokens, heads, 4] or [rows, len, heads, 4]";
    assert_eq!(
        error,
        format!("rotary: `x` has shape [72], expected {expected}")
    );
    let error = Table::new(5, 8, THETA).unwrap_err().to_string();
    assert_eq!(
        error,
        "rotary: `head_dim` is 5, expected an even number above 0"
    );
}
