use cordee_memory::{View, ViewMut};

use super::{AdamW, State, step};
use crate::{
    float::Float,
    testing::{Outcome, assert_close, assert_thread_independent, cast, normals, widen},
};

const HYPER: AdamW = AdamW {
    lr: 3e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 1,
};

/// What gradients are multiplied by.
const SCALE: [f64; 1] = [0.25];

fn scale(scale: &[f64; 1]) -> View<'_> {
    View::from_slice(scale, &[1]).unwrap()
}

/// Parameters and moments after `steps` steps on gradients that change from step to step.
fn ours<T: Float>(count: usize, steps: u64) -> Outcome {
    let mut params = cast::<T>(&normals("params", count));
    let (mut m, mut v) = (vec![T::ZERO; count], vec![T::ZERO; count]);
    let mut compute = vec![T::ZERO; count];
    for number in 1..=steps {
        let gradients = cast::<T>(&normals(&format!("gradients {number}"), count));
        let state = State {
            params: ViewMut::from_slice(&mut params, &[count]).unwrap(),
            m: ViewMut::from_slice(&mut m, &[count]).unwrap(),
            v: ViewMut::from_slice(&mut v, &[count]).unwrap(),
            compute: Some(ViewMut::from_slice(&mut compute, &[count]).unwrap()),
        };
        let gradients = View::from_slice(&gradients, &[count]).unwrap();
        step(
            state,
            gradients,
            scale(&SCALE),
            &AdamW {
                step: number,
                ..HYPER
            },
        )
        .unwrap();
    }
    assert_eq!(widen(&compute), widen(&params));
    vec![
        ("params", widen(&params)),
        ("m", widen(&m)),
        ("v", widen(&v)),
    ]
}

/// Algorithm 2 of the paper, with the decay first, written as in the paper.
fn expected(count: usize, steps: u64) -> Outcome {
    let h = HYPER;
    let mut params = normals("params", count);
    let (mut m, mut v) = (vec![0.0; count], vec![0.0; count]);
    for number in 1..=steps {
        let gradients = normals(&format!("gradients {number}"), count);
        for i in 0..count {
            let g = gradients[i] * SCALE[0];
            m[i] = h.beta1 * m[i] + (1.0 - h.beta1) * g;
            v[i] = h.beta2 * v[i] + (1.0 - h.beta2) * g * g;
            let m_hat = m[i] / (1.0 - h.beta1.powf(number as f64));
            let v_hat = v[i] / (1.0 - h.beta2.powf(number as f64));
            params[i] -= h.lr * h.weight_decay * params[i];
            params[i] -= h.lr * m_hat / (v_hat.sqrt() + h.eps);
        }
    }
    vec![("params", params), ("m", m), ("v", v)]
}

#[test]
fn follows_the_paper() {
    assert_close(&ours::<f64>(100, 20), &expected(100, 20), 1e-13);
    assert_close(&ours::<f32>(100, 20), &expected(100, 20), 1e-6);
}

#[test]
fn the_first_step_is_the_learning_rate_whatever_the_gradient() {
    for gradient in [1e-3_f64, -5.0] {
        let (mut params, mut m, mut v) = ([1.0], [0.0], [0.0]);
        let state = State {
            params: ViewMut::from_slice(&mut params, &[1]).unwrap(),
            m: ViewMut::from_slice(&mut m, &[1]).unwrap(),
            v: ViewMut::from_slice(&mut v, &[1]).unwrap(),
            compute: None,
        };
        let hyper = AdamW {
            weight_decay: 0.0,
            ..HYPER
        };
        let gradients = [gradient];
        let gradients = View::from_slice(&gradients, &[1]).unwrap();
        step(state, gradients, scale(&[1.0]), &hyper).unwrap();
        let moved: f64 = 1.0 - params[0];
        assert!(
            (moved - HYPER.lr * gradient.signum()).abs() < 1e-6,
            "moved by {moved}"
        );
    }
}

#[test]
fn threads_and_ranges_do_not_matter() {
    assert_thread_independent(|| ours::<f32>(50_000, 2));
    let (whole, part) = (ours::<f32>(50_000, 2), ours::<f32>(333, 2));
    for ((_, whole), (_, part)) in whole.iter().zip(&part) {
        assert_eq!(whole[..333], part[..]);
    }
}

#[test]
fn wrong_calls_are_named() {
    let call = |len: usize, number: u64| {
        let (mut params, mut m, mut v) = ([1.0_f32; 4], [0.0_f32; 4], vec![0.0_f32; len]);
        let state = State {
            params: ViewMut::from_slice(&mut params, &[4]).unwrap(),
            m: ViewMut::from_slice(&mut m, &[4]).unwrap(),
            v: ViewMut::from_slice(&mut v, &[len]).unwrap(),
            compute: None,
        };
        let gradients = View::from_slice(&[1.0_f32; 4], &[4]).unwrap();
        let result = step(
            state,
            gradients,
            scale(&SCALE),
            &AdamW {
                step: number,
                ..HYPER
            },
        );
        assert!(
            params
                .iter()
                .all(|&param| param.to_bits() == 1.0_f32.to_bits()),
            "a refused step wrote something"
        );
        result.unwrap_err().to_string()
    };
    assert_eq!(call(3, 1), "adamw: `v` has shape [3], expected [4]");
    let expected = "1 or more: the first step is number 1";
    assert_eq!(
        call(4, 0),
        format!("adamw: `step` is 0, expected {expected}")
    );
}

#[test]
fn a_scale_that_is_not_finite_changes_nothing() {
    for bad in [f64::NAN, f64::INFINITY] {
        let (mut params, mut m, mut v, mut compute) = ([1.0], [2.0], [3.0], [4.0]);
        let state = State {
            params: ViewMut::from_slice(&mut params, &[1]).unwrap(),
            m: ViewMut::from_slice(&mut m, &[1]).unwrap(),
            v: ViewMut::from_slice(&mut v, &[1]).unwrap(),
            compute: Some(ViewMut::from_slice(&mut compute, &[1]).unwrap()),
        };
        let gradients = View::from_slice(&[5.0], &[1]).unwrap();
        step(state, gradients, scale(&[bad]), &HYPER).unwrap();
        assert_eq!([params, m, v, compute], [[1.0], [2.0], [3.0], [4.0]]);
    }
}
