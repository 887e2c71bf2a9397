use candle_core::{D, Tensor};
use cordee_memory::{View, ViewMut};

use super::{Backward, backward, forward, forward_residual};
use crate::{
    float::Float,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, cast, dot,
        leaf, normals, tensor, values, widen,
    },
};

const EPS: f64 = 1e-2;

/// x, residual, weight and bias.
fn inputs(n: usize, dim: usize) -> Vec<Vec<f64>> {
    vec![
        normals("x", n * dim),
        normals("residual", n * dim),
        normals("weight", dim),
        normals("bias", dim),
    ]
}

/// The gradient of sum(y dy + h dh), where y is the norm of h = x + residual.
fn ours<T: Float>(inputs: &[Vec<f64>], n: usize, dim: usize) -> Outcome {
    let shape = [n, dim];
    let (weight, bias) = (cast::<T>(&inputs[2]), cast::<T>(&inputs[3]));
    let weight = View::from_slice(&weight, &[dim]).unwrap();
    let bias = View::from_slice(&bias, &[dim]).unwrap();
    let (x, residual) = (
        tensor::<T>(&inputs[0], &shape),
        tensor::<T>(&inputs[1], &shape),
    );
    let (h, normed) = forward_residual(&x, &residual, weight, bias, EPS).unwrap();
    let (dy, dh) = (normals("dy", n * dim), normals("dh", n * dim));
    let call = Backward {
        dy: &tensor::<T>(&dy, &shape),
        x: &h,
        weight,
        mean: &normed.mean,
        rstd: &normed.rstd,
        residual: Some(&tensor::<T>(&dh, &shape)),
    };
    let (mut dweight, mut dbias) = (vec![T::ZERO; dim], vec![T::ZERO; dim]);
    let dx = backward(
        &call,
        &mut ViewMut::from_slice(&mut dweight, &[dim]).unwrap(),
        &mut ViewMut::from_slice(&mut dbias, &[dim]).unwrap(),
    )
    .unwrap();
    let loss = dot(&values(&normed.y), &dy) + dot(&values(&h), &dh);
    vec![
        ("y", values(&normed.y)),
        ("h", values(&h)),
        ("dx", values(&dx)),
        ("dweight", widen(&dweight)),
        ("dbias", widen(&dbias)),
        ("loss", vec![loss]),
    ]
}

#[test]
fn gradients_are_slopes() {
    let (n, dim) = (5, 7);
    let inputs = inputs(n, dim);
    let outcome = ours::<f64>(&inputs, n, dim);
    let [dx, dweight, dbias] = [2, 3, 4].map(|index: usize| outcome[index].1.clone());
    assert_gradients(&inputs, &[dx.clone(), dx, dweight, dbias], |inputs| {
        ours::<f64>(inputs, n, dim)[5].1[0]
    });
}

#[test]
fn agrees_with_autograd() {
    let (n, dim) = (67, 100);
    let inputs = inputs(n, dim);
    let (x, residual) = (leaf(&inputs[0], &[n, dim]), leaf(&inputs[1], &[n, dim]));
    let (weight, bias) = (leaf(&inputs[2], &[dim]), leaf(&inputs[3], &[dim]));
    let h = (x.as_tensor() + residual.as_tensor()).unwrap();
    let mean = h.mean_keepdim(D::Minus1).unwrap();
    let centred = h.broadcast_sub(&mean).unwrap();
    let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
    let root = (variance + EPS).unwrap().sqrt().unwrap();
    let y = centred
        .broadcast_div(&root)
        .unwrap()
        .broadcast_mul(&weight)
        .unwrap()
        .broadcast_add(&bias)
        .unwrap();
    let (dy, dh) = (normals("dy", n * dim), normals("dh", n * dim));
    let dy_dh: Vec<f64> = dy.iter().chain(&dh).copied().collect();
    let both = Tensor::cat(&[&y, &h], 0).unwrap();
    let gradients = autograd(&both, &dy_dh, &[&x, &weight, &bias]);
    let expected = vec![
        ("y", values(&y)),
        ("h", values(&h)),
        ("dx", gradients[0].clone()),
        ("dweight", gradients[1].clone()),
        ("dbias", gradients[2].clone()),
        ("loss", vec![dot(&values(&both), &dy_dh)]),
    ];
    assert_close(&ours::<f64>(&inputs, n, dim), &expected, 1e-13);
    assert_close(&ours::<f32>(&inputs, n, dim), &expected, 1e-6);
}

#[test]
fn the_residual_form_is_an_addition_and_the_plain_form() {
    let (n, dim) = (40, 33);
    let (weight, bias) = (normals("weight", dim), normals("bias", dim));
    let (weight, bias) = (cast::<f32>(&weight), cast::<f32>(&bias));
    let weight = View::from_slice(&weight, &[dim]).unwrap();
    let bias = View::from_slice(&bias, &[dim]).unwrap();
    let x = tensor::<f32>(&normals("x", n * dim), &[n, dim]);
    let residual = tensor::<f32>(&normals("residual", n * dim), &[n, dim]);
    let (h, fused) = forward_residual(&x, &residual, weight, bias, EPS).unwrap();
    let sum = (x + residual).unwrap();
    let plain = forward(&sum, weight, bias, EPS).unwrap();
    assert_eq!(values(&h), values(&sum));
    assert_eq!(values(&fused.y), values(&plain.y));
    assert_eq!(values(&fused.mean), values(&plain.mean));
    assert_eq!(values(&fused.rstd), values(&plain.rstd));
}

#[test]
fn threads_do_not_matter() {
    let inputs = inputs(300, 129);
    assert_thread_independent(|| ours::<f32>(&inputs, 300, 129));
}

#[test]
fn wrong_operands_are_named() {
    let ones = [1.0_f32; 4];
    let x = tensor::<f32>(&[0.0; 8], &[2, 4]);
    let short = View::from_slice(&ones[..3], &[3]).unwrap();
    let right = View::from_slice(&ones, &[4]).unwrap();
    let message = |weight, bias, eps| forward(&x, weight, bias, eps).unwrap_err().to_string();
    assert_eq!(
        message(short, right, EPS),
        "layer_norm: `weight` has shape [3], expected [4]"
    );
    assert_eq!(
        message(right, short, EPS),
        "layer_norm: `bias` has shape [3], expected [4]"
    );
    assert_eq!(
        message(right, right, f64::NAN),
        "layer_norm: `eps` is NaN, expected a number that is 0 or more"
    );
}
