use candle_core::{Device, Tensor};
use cordee_memory::{View, ViewMut};

use super::{backward, forward};
use crate::{
    float::Float,
    testing::{
        Outcome, assert_close, assert_thread_independent, autograd, cast, leaf, normals, tensor,
        values, widen,
    },
};

const SCALE: f64 = 1.75;

fn tokens(n: usize, vocab: u32) -> Vec<u32> {
    (0..n as u32).map(|i| i * i % vocab).collect()
}

fn ours<T: Float>(tokens: &[u32], vocab: usize, dim: usize) -> Outcome {
    let weight = cast::<T>(&normals("weight", vocab * dim));
    let view = View::from_slice(&weight, &[vocab, dim]).unwrap();
    let y = forward(tokens, view, SCALE).unwrap();
    let dy = tensor::<T>(&normals("dy", tokens.len() * dim), &[tokens.len(), dim]);
    let mut dweight = vec![T::ZERO; vocab * dim];
    let mut view = ViewMut::from_slice(&mut dweight, &[vocab, dim]).unwrap();
    backward(tokens, &dy, SCALE, &mut view).unwrap();
    vec![("y", values(&y)), ("dweight", widen(&dweight))]
}

#[test]
fn agrees_with_autograd() {
    let (n, vocab, dim) = (37, 11, 70);
    let tokens = tokens(n, 11);
    let weight = leaf(&normals("weight", vocab * dim), &[vocab, dim]);
    let ids = Tensor::from_slice(&tokens, n, &Device::Cpu).unwrap();
    let y = (weight.index_select(&ids, 0).unwrap() * SCALE).unwrap();
    let dweight = autograd(&y, &normals("dy", n * dim), &[&weight]).remove(0);
    let expected = vec![("y", values(&y)), ("dweight", dweight)];
    assert_close(&ours::<f64>(&tokens, vocab, dim), &expected, 1e-14);
    assert_close(&ours::<f32>(&tokens, vocab, dim), &expected, 1e-6);
}

#[test]
fn threads_do_not_matter() {
    let tokens = tokens(700, 13);
    assert_thread_independent(|| ours::<f32>(&tokens, 13, 200));
}

#[test]
fn gradients_accumulate() {
    let dy = tensor::<f32>(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    let mut dweight = [10.0_f32; 6];
    let mut view = ViewMut::from_slice(&mut dweight, &[3, 2]).unwrap();
    backward(&[2, 2], &dy, 1.0, &mut view).unwrap();
    backward(&[0, 2], &dy, 1.0, &mut view).unwrap();
    assert_eq!(dweight.map(|value| value as u32), [11, 12, 10, 10, 17, 20]);
}

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let weight = [0.0_f32; 6];
    let weight = View::from_slice(&weight, &[3, 2]).unwrap();
    let error = forward(&[0, 2, 3], weight, 1.0).unwrap_err().to_string();
    assert!(
        error.starts_with("embedding: token 3 at index 2 is outside a vocabulary of 3"),
        "{error}"
    );
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    let dy = tensor::<f32>(&[0.0; 4], &[2, 2]);
    let mut dweight = [0.0_f32; 9];
    let mut view = ViewMut::from_slice(&mut dweight, &[3, 3]).unwrap();
    let error = backward(&[0, 1], &dy, 1.0, &mut view)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "embedding: `dy` has shape [2, 2], expected [2, 3]");
    let error = backward(&[0], &dy, f64::NAN, &mut view).unwrap_err();
    assert_eq!(
        error.to_string(),
        "embedding: `scale` is NaN, expected a finite number"
    );
}
