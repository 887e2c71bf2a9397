use candle_core::D;
use cordee_memory::{View, ViewMut};

use super::{Backward, Norm, backward, forward, forward_residual};
use crate::{
    float::Float,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, cast, dot,
        leaf, normals, tensor, values, widen,
    },
};

const EPS: f64 = 1e-2;

const NORM: Norm = Norm {
    eps: EPS,
    unit_offset: false,
};

/// x, residual and weight.
fn inputs(n: usize, dim: usize) -> Vec<Vec<f64>> {
    vec![
        normals("x", n * dim),
        normals("residual", n * dim),
        normals("weight", dim),
    ]
}

/// The gradient of sum(y dy + h dh), where y is the norm of h = x + residual.
fn ours<T: Float>(inputs: &[Vec<f64>], n: usize, dim: usize) -> Outcome {
    let shape = [n, dim];
    let weight = cast::<T>(&inputs[2]);
    let weight = View::from_slice(&weight, &[dim]).unwrap();
    let (x, residual) = (
        tensor::<T>(&inputs[0], &shape),
        tensor::<T>(&inputs[1], &shape),
    );
    let (h, normed) = forward_residual(&x, &residual, weight, NORM).unwrap();
    let (dy, dh) = (normals("dy", n * dim), normals("dh", n * dim));
    let call = Backward {
        norm: NORM,
        dy: &tensor::<T>(&dy, &shape),
        x: &h,
        weight,
        rstd: &normed.rstd,
        residual: Some(&tensor::<T>(&dh, &shape)),
    };
    let mut dweight = vec![T::ZERO; dim];
    let dx = backward(
        &call,
        &mut ViewMut::from_slice(&mut dweight, &[dim]).unwrap(),
    )
    .unwrap();
    let loss = dot(&values(&normed.y), &dy) + dot(&values(&h), &dh);
    vec![
        ("y", values(&normed.y)),
        ("h", values(&h)),
        ("dx", values(&dx)),
        ("dweight", widen(&dweight)),
        ("loss", vec![loss]),
    ]
}

#[test]
fn gradients_are_slopes() {
    let (n, dim) = (5, 7);
    let inputs = inputs(n, dim);
    let outcome = ours::<f64>(&inputs, n, dim);
    let (dx, dweight) = (outcome[2].1.clone(), outcome[3].1.clone());
    assert_gradients(&inputs, &[dx.clone(), dx, dweight], |inputs| {
        ours::<f64>(inputs, n, dim)[4].1[0]
    });
}

#[test]
fn agrees_with_autograd() {
    let (n, dim) = (67, 100);
    let inputs = inputs(n, dim);
    let (x, residual) = (leaf(&inputs[0], &[n, dim]), leaf(&inputs[1], &[n, dim]));
    let weight = leaf(&inputs[2], &[dim]);
    let h = (x.as_tensor() + residual.as_tensor()).unwrap();
    let mean = h.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
    let root = (mean + EPS).unwrap().sqrt().unwrap();
    let y = h
        .broadcast_div(&root)
        .unwrap()
        .broadcast_mul(&weight)
        .unwrap();
    let (dy, dh) = (normals("dy", n * dim), normals("dh", n * dim));
    let dy_dh: Vec<f64> = dy.iter().chain(&dh).copied().collect();
    let both = candle_core::Tensor::cat(&[&y, &h], 0).unwrap();
    let gradients = autograd(&both, &dy_dh, &[&x, &weight]);
    let loss = dot(&values(&both), &dy_dh);
    let expected = vec![
        ("y", values(&y)),
        ("h", values(&h)),
        ("dx", gradients[0].clone()),
        ("dweight", gradients[1].clone()),
        ("loss", vec![loss]),
    ];
    assert_close(&ours::<f64>(&inputs, n, dim), &expected, 1e-13);
    assert_close(&ours::<f32>(&inputs, n, dim), &expected, 1e-6);
}

#[test]
fn the_residual_form_is_an_addition_and_the_plain_form() {
    let (n, dim) = (40, 33);
    let weight = cast::<f32>(&normals("weight", dim));
    let weight = View::from_slice(&weight, &[dim]).unwrap();
    let x = tensor::<f32>(&normals("x", n * dim), &[n, dim]);
    let residual = tensor::<f32>(&normals("residual", n * dim), &[n, dim]);
    let (h, fused) = forward_residual(&x, &residual, weight, NORM).unwrap();
    let plain = forward(&(x + residual).unwrap(), weight, NORM).unwrap();
    assert_eq!(values(&fused.y), values(&plain.y));
    assert_eq!(values(&fused.rstd), values(&plain.rstd));
    assert_eq!(h.dims(), plain.y.dims());
}

#[test]
fn a_unit_offset_is_added_to_the_gains() {
    let (n, dim) = (40, 33);
    let stored = normals("weight", dim);
    let gains: Vec<f64> = stored.iter().map(|stored| 1.0 + stored).collect();
    let x = tensor::<f64>(&normals("x", n * dim), &[n, dim]);
    let dy = tensor::<f64>(&normals("dy", n * dim), &[n, dim]);
    let run = |weight: &[f64], norm| {
        let weight = View::from_slice(weight, &[dim]).unwrap();
        let normed = forward(&x, weight, norm).unwrap();
        let call = Backward {
            norm,
            dy: &dy,
            x: &x,
            weight,
            rstd: &normed.rstd,
            residual: None,
        };
        let mut dweight = vec![0.0; dim];
        let mut view = ViewMut::from_slice(&mut dweight, &[dim]).unwrap();
        let dx = backward(&call, &mut view).unwrap();
        (values(&normed.y), values(&dx), dweight)
    };
    let offset = Norm {
        unit_offset: true,
        ..NORM
    };
    assert_eq!(run(&stored, offset), run(&gains, NORM));
}

#[test]
fn threads_do_not_matter() {
    let inputs = inputs(300, 129);
    assert_thread_independent(|| ours::<f32>(&inputs, 300, 129));
}

#[test]
fn gradients_accumulate_and_the_residual_is_optional() {
    let (n, dim) = (3, 4);
    let weight = [1.0_f64, 2.0, 3.0, 4.0];
    let weight = View::from_slice(&weight, &[dim]).unwrap();
    let x = tensor::<f64>(&normals("x", n * dim), &[n, dim]);
    let normed = forward(&x, weight, NORM).unwrap();
    let call = Backward {
        norm: NORM,
        dy: &x,
        x: &x,
        weight,
        rstd: &normed.rstd,
        residual: None,
    };
    let mut dweight = vec![0.0; dim];
    let dx = backward(
        &call,
        &mut ViewMut::from_slice(&mut dweight, &[dim]).unwrap(),
    )
    .unwrap();
    let once = dweight.clone();
    let with_residual = Backward {
        residual: Some(&x),
        ..call
    };
    let mut view = ViewMut::from_slice(&mut dweight, &[dim]).unwrap();
    let dx_with_residual = backward(&with_residual, &mut view).unwrap();
    let doubled: Vec<f64> = once.iter().map(|value| 2.0 * value).collect();
    assert_eq!(dweight, doubled);
    assert_eq!(values(&dx_with_residual), values(&(dx + x).unwrap()));
}

#[test]
fn wrong_operands_are_named() {
    let weight = [1.0_f32; 4];
    let x = tensor::<f32>(&[0.0; 8], &[2, 4]);
    let short = View::from_slice(&weight[..3], &[3]).unwrap();
    let error = forward(&x, short, NORM).unwrap_err().to_string();
    assert_eq!(error, "rms_norm: `weight` has shape [3], expected [4]");
    let weight = View::from_slice(&weight, &[4]).unwrap();
    let error = forward(&x.flatten_all().unwrap(), weight, NORM)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "rms_norm: `x` has shape [8], expected [n, dim]");
    let wide = tensor::<f64>(&[0.0; 8], &[2, 4]);
    let error = forward(&wide, weight, NORM).unwrap_err().to_string();
    assert_eq!(error, "rms_norm: `weight` holds f32, expected f64");
    let error = forward_residual(&x, &wide, weight, NORM)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "rms_norm: `residual` holds f64, expected f32");
    let error = forward(&x, weight, Norm { eps: -1.0, ..NORM })
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "rms_norm: `eps` is -1, expected a number that is 0 or more"
    );
    let bytes = x.to_dtype(candle_core::DType::U8).unwrap();
    let error = forward(&bytes, weight, NORM).unwrap_err().to_string();
    assert_eq!(error, "rms_norm: `x` holds u8, expected bf16, f32 or f64");
}
