use candle_core::{D, Device, Tensor};
use cordee_memory::{View, ViewMut};

use super::{Losses, Sums, Targets, logits, loss, loss_and_gradient};
use crate::{
    error::Result,
    float::Float,
    matrix::Write,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, cast, leaf,
        normals, tensor, values, widen,
    },
};

/// The sum of the losses, and the losses.
fn loss_alone(x: &Tensor, weight: View<'_>, targets: &Targets<'_>) -> Result<(f64, Losses)> {
    let mut sum = [0.0];
    let mut nll = ViewMut::from_slice(&mut sum, &[1]).unwrap();
    let losses = loss(x, weight, targets, &mut nll)?;
    Ok((sum[0], losses))
}

/// The sum of the losses, the losses and dx; adds to `dweight`.
fn with_gradient<T: Float>(
    x: &Tensor,
    weight: View<'_>,
    targets: &Targets<'_>,
    dweight: &mut [T],
) -> (f64, Losses, Tensor) {
    let mut sum = [0.0];
    let sums = Sums {
        nll: ViewMut::from_slice(&mut sum, &[1]).unwrap(),
        dweight: ViewMut::from_slice(dweight, weight.shape()).unwrap(),
        write: Write::Add,
    };
    let (losses, dx) = loss_and_gradient(x, weight, targets, sums).unwrap();
    (sum[0], losses, dx)
}

#[derive(Clone, Copy)]
struct Case {
    n: usize,
    dim: usize,
    vocab: usize,
    masked: bool,
}

impl Case {
    /// x and weight.
    fn inputs(&self) -> Vec<Vec<f64>> {
        vec![
            normals("x", self.n * self.dim),
            normals("weight", self.vocab * self.dim),
        ]
    }

    fn tokens(&self) -> Vec<u32> {
        (0..self.n).map(|i| (i * i % self.vocab) as u32).collect()
    }

    fn mask(&self) -> Vec<u8> {
        (0..self.n)
            .map(|i| u8::from(!self.masked || i % 3 != 0))
            .collect()
    }

    fn ours<T: Float>(&self, inputs: &[Vec<f64>]) -> Outcome {
        let x = tensor::<T>(&inputs[0], &[self.n, self.dim]);
        let weight = cast::<T>(&inputs[1]);
        let weight = View::from_slice(&weight, &[self.vocab, self.dim]).unwrap();
        let (mut tokens, mask) = (self.tokens(), self.mask());
        for (token, &mask) in tokens.iter_mut().zip(&mask) {
            if mask == 0 {
                *token = u32::MAX;
            }
        }
        let targets = Targets {
            tokens: &tokens,
            mask: self.masked.then_some(&mask),
        };
        let mut dweight = vec![T::ZERO; self.vocab * self.dim];
        let (sum, losses, dx) = with_gradient(&x, weight, &targets, &mut dweight);
        let (sum_alone, alone) = loss_alone(&x, weight, &targets).unwrap();
        assert_eq!(
            (sum.to_bits(), losses.trained),
            (sum_alone.to_bits(), alone.trained)
        );
        assert_eq!(values(&losses.per_token), values(&alone.per_token));
        assert_eq!(
            losses.trained,
            mask.iter().map(|&mask| u64::from(mask)).sum::<u64>()
        );
        vec![
            ("loss", vec![sum]),
            ("nll", values(&losses.per_token)),
            ("dx", values(&dx)),
            ("dweight", widen(&dweight)),
        ]
    }

    fn expected(&self, inputs: &[Vec<f64>]) -> Outcome {
        let x = leaf(&inputs[0], &[self.n, self.dim]);
        let weight = leaf(&inputs[1], &[self.vocab, self.dim]);
        let logits = x.matmul(&weight.t().unwrap()).unwrap();
        let largest = logits.max_keepdim(D::Minus1).unwrap().detach();
        let shifted = logits.broadcast_sub(&largest).unwrap();
        let lse = shifted
            .exp()
            .unwrap()
            .sum_keepdim(D::Minus1)
            .unwrap()
            .log()
            .unwrap();
        // A product with one-hot rows rather than a gather: candle's own gradient of it is exact.
        let one_hot: Vec<f64> = self
            .tokens()
            .iter()
            .flat_map(|&token| {
                (0..self.vocab).map(move |i| f64::from(u8::from(i == token as usize)))
            })
            .collect();
        let one_hot = Tensor::from_vec(one_hot, (self.n, self.vocab), &Device::Cpu).unwrap();
        let chosen = (shifted * one_hot).unwrap().sum_keepdim(D::Minus1).unwrap();
        let mask: Vec<f64> = self.mask().into_iter().map(f64::from).collect();
        let nll = ((lse - chosen).unwrap().squeeze(1).unwrap() * tensor::<f64>(&mask, &[self.n]))
            .unwrap();
        let gradients = autograd(&nll, &vec![1.0; self.n], &[&x, &weight]);
        let nll = values(&nll);
        vec![
            ("loss", vec![nll.iter().sum()]),
            ("nll", nll),
            ("dx", gradients[0].clone()),
            ("dweight", gradients[1].clone()),
        ]
    }
}

#[test]
fn gradients_are_slopes() {
    for masked in [false, true] {
        let case = Case {
            n: 5,
            dim: 3,
            vocab: 7,
            masked,
        };
        let inputs = case.inputs();
        let outcome = case.ours::<f64>(&inputs);
        let gradients = [outcome[2].1.clone(), outcome[3].1.clone()];
        assert_gradients(&inputs, &gradients, |inputs| {
            case.ours::<f64>(inputs)[0].1[0]
        });
    }
}

#[test]
fn agrees_with_autograd() {
    // The second case has more logits than a chunk.
    for case in [
        Case {
            n: 70,
            dim: 12,
            vocab: 130,
            masked: true,
        },
        Case {
            n: 300,
            dim: 4,
            vocab: 20_000,
            masked: false,
        },
    ] {
        let inputs = case.inputs();
        let expected = case.expected(&inputs);
        assert_close(&case.ours::<f64>(&inputs), &expected, 1e-13);
        assert_close(&case.ours::<f32>(&inputs), &expected, 1e-6);
    }
}

#[test]
fn threads_do_not_matter() {
    let case = Case {
        n: 400,
        dim: 9,
        vocab: 1100,
        masked: true,
    };
    let inputs = case.inputs();
    assert_thread_independent(|| case.ours::<f32>(&inputs));
}

#[test]
fn weight_gradients_accumulate() {
    let x = tensor::<f64>(&normals("x", 6), &[2, 3]);
    let weight = normals("weight", 15);
    let weight = View::from_slice(&weight, &[5, 3]).unwrap();
    let targets = Targets {
        tokens: &[4, 1],
        mask: None,
    };
    let mut dweight = vec![0.0_f64; 15];
    let mut call = || {
        with_gradient(&x, weight, &targets, &mut dweight);
        dweight.clone()
    };
    let twice_the_first = call().iter().map(|value| 2.0 * value).collect();
    assert_close(
        &vec![("dweight", call())],
        &vec![("dweight", twice_the_first)],
        1e-15,
    );
}

#[test]
fn a_batch_without_trained_tokens_has_no_loss_and_no_gradient() {
    let x = tensor::<f32>(&normals("x", 6), &[2, 3]);
    let weight = [1.0_f32; 12];
    let weight = View::from_slice(&weight, &[4, 3]).unwrap();
    let targets = Targets {
        tokens: &[0, 9],
        mask: Some(&[0, 0]),
    };
    let mut dweight = [0.0_f32; 12];
    let (sum, losses, dx) = with_gradient(&x, weight, &targets, &mut dweight);
    assert_eq!((sum.to_bits(), losses.trained), (0, 0));
    assert_eq!(values(&losses.per_token), vec![0.0; 2]);
    assert_eq!(values(&dx), vec![0.0; 6]);
    assert!(dweight.iter().all(|&value| value == 0.0));
}

#[test]
fn infinite_logits_give_a_loss_that_is_not_a_number() {
    let x = tensor::<f32>(&[f64::INFINITY, 1.0], &[1, 2]);
    let weight = [1.0_f32; 6];
    let weight = View::from_slice(&weight, &[3, 2]).unwrap();
    let targets = Targets {
        tokens: &[1],
        mask: None,
    };
    assert!(loss_alone(&x, weight, &targets).unwrap().0.is_nan());
}

#[test]
fn logits_are_the_product() {
    let x = tensor::<f64>(&normals("x", 6), &[2, 3]);
    let weight = normals("weight", 15);
    let found = logits(&x, View::from_slice(&weight, &[5, 3]).unwrap()).unwrap();
    let expected = x
        .matmul(&tensor::<f64>(&weight, &[5, 3]).t().unwrap())
        .unwrap();
    assert_close(
        &vec![("y", values(&found))],
        &vec![("y", values(&expected))],
        1e-14,
    );
}

#[test]
fn wrong_targets_are_named() {
    let x = tensor::<f32>(&[0.0; 6], &[2, 3]);
    let weight = [0.0_f32; 12];
    let weight = View::from_slice(&weight, &[4, 3]).unwrap();
    let message = |tokens: &[u32], mask: Option<&[u8]>| {
        loss_alone(&x, weight, &Targets { tokens, mask })
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(&[0], None),
        "head: `targets` has shape [1], expected [2]"
    );
    assert_eq!(
        message(&[0, 1], Some(&[1])),
        "head: `mask` has shape [1], expected [2]"
    );
    let error = message(&[9, 4], Some(&[0, 1]));
    assert!(
        error.starts_with("head: token 4 at index 1 is outside a vocabulary of 4"),
        "{error}"
    );
}

#[test]
fn sums_of_losses_accumulate() {
    let x = tensor::<f64>(&normals("x", 6), &[2, 3]);
    let weight = normals("weight", 15);
    let weight = View::from_slice(&weight, &[5, 3]).unwrap();
    let targets = Targets {
        tokens: &[4, 1],
        mask: None,
    };
    let (sum, _) = loss_alone(&x, weight, &targets).unwrap();
    let mut held = [1.0];
    let mut nll = ViewMut::from_slice(&mut held, &[1]).unwrap();
    loss(&x, weight, &targets, &mut nll).unwrap();
    assert!((held[0] - 1.0 - sum).abs() < 1e-15);
}
