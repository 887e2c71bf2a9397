use candle_core::{D, Device, Tensor};

use super::{Inputs, backward, forward};
use crate::{
    float::Float,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, dot, leaf,
        normals, tensor, values,
    },
};

#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    len: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Case {
    fn queries(&self) -> [usize; 4] {
        [self.rows, self.len, self.heads, self.head_dim]
    }

    fn keys(&self) -> [usize; 4] {
        [self.rows, self.len, self.kv_heads, self.head_dim]
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// q, k and v.
    fn inputs(&self) -> Vec<Vec<f64>> {
        let keys = self.keys().iter().product();
        let q = normals("q", self.queries().iter().product());
        vec![q, normals("k", keys), normals("v", keys)]
    }

    fn dout(&self) -> Vec<f64> {
        normals("dout", self.queries().iter().product())
    }

    fn ours<T: Float>(&self, inputs: &[Vec<f64>]) -> Outcome {
        let inputs = Inputs {
            q: &tensor::<T>(&inputs[0], &self.queries()),
            k: &tensor::<T>(&inputs[1], &self.keys()),
            v: &tensor::<T>(&inputs[2], &self.keys()),
            scale: self.scale(),
        };
        let attended = forward(&inputs).unwrap();
        let dout = tensor::<T>(&self.dout(), &self.queries());
        let gradients = backward(&dout, &inputs, &attended).unwrap();
        vec![
            ("out", values(&attended.out)),
            ("lse", values(&attended.lse)),
            ("dq", values(&gradients.dq)),
            ("dk", values(&gradients.dk)),
            ("dv", values(&gradients.dv)),
        ]
    }

    /// The same by materialised scores and candle's autograd.
    fn expected(&self, inputs: &[Vec<f64>]) -> Outcome {
        let q = leaf(&inputs[0], &self.queries());
        let (k, v) = (
            leaf(&inputs[1], &self.keys()),
            leaf(&inputs[2], &self.keys()),
        );
        let group = self.heads / self.kv_heads;
        let repeated = |keys: &Tensor| {
            let keys = keys.transpose(1, 2).unwrap().unsqueeze(2).unwrap();
            let shape = (self.rows, self.kv_heads, group, self.len, self.head_dim);
            let keys = keys.broadcast_as(shape).unwrap();
            keys.reshape((self.rows, self.heads, self.len, self.head_dim))
                .unwrap()
        };
        let mask: Vec<f64> = (0..self.len * self.len)
            .map(|i| {
                if i % self.len > i / self.len {
                    -1e9
                } else {
                    0.0
                }
            })
            .collect();
        let mask = Tensor::from_vec(mask, (1, 1, self.len, self.len), &Device::Cpu).unwrap();
        let queries = q.transpose(1, 2).unwrap().contiguous().unwrap();
        let keys = repeated(&k).transpose(2, 3).unwrap().contiguous().unwrap();
        let scores = (queries.matmul(&keys).unwrap() * self.scale()).unwrap();
        let scores = scores.broadcast_add(&mask).unwrap();
        let largest = scores.max_keepdim(D::Minus1).unwrap().detach();
        let exponentials = scores.broadcast_sub(&largest).unwrap().exp().unwrap();
        let sums = exponentials.sum_keepdim(D::Minus1).unwrap();
        let probabilities = exponentials.broadcast_div(&sums).unwrap();
        let out = probabilities
            .matmul(&repeated(&v))
            .unwrap()
            .transpose(1, 2)
            .unwrap();
        let lse = (largest + sums.log().unwrap()).unwrap();
        let mut gradients = autograd(&out, &self.dout(), &[&q, &k, &v]).into_iter();
        vec![
            ("out", values(&out)),
            ("lse", values(&lse)),
            ("dq", gradients.next().unwrap()),
            ("dk", gradients.next().unwrap()),
            ("dv", gradients.next().unwrap()),
        ]
    }
}

#[test]
fn gradients_are_slopes() {
    let case = Case {
        rows: 2,
        len: 5,
        heads: 6,
        kv_heads: 2,
        head_dim: 3,
    };
    let inputs = case.inputs();
    let gradients = case
        .ours::<f64>(&inputs)
        .into_iter()
        .skip(2)
        .map(|(_, values)| values);
    let dout = case.dout();
    assert_gradients(&inputs, &gradients.collect::<Vec<_>>(), |inputs| {
        dot(&case.ours::<f64>(inputs)[0].1, &dout)
    });
}

#[test]
fn agrees_with_autograd() {
    for case in [
        Case {
            rows: 1,
            len: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 1,
        },
        Case {
            rows: 2,
            len: 64,
            heads: 2,
            kv_heads: 2,
            head_dim: 16,
        },
        Case {
            rows: 2,
            len: 65,
            heads: 6,
            kv_heads: 2,
            head_dim: 8,
        },
        Case {
            rows: 1,
            len: 150,
            heads: 3,
            kv_heads: 1,
            head_dim: 5,
        },
    ] {
        let inputs = case.inputs();
        if case.len == 1 {
            // One token sees itself alone: its probability is 1, whatever q and k are.
            let outcome = case.ours::<f64>(&inputs);
            assert_eq!(outcome[0].1, inputs[2]);
            assert_eq!((&outcome[2].1, &outcome[3].1), (&vec![0.0], &vec![0.0]));
            continue;
        }
        let expected = case.expected(&inputs);
        assert_close(&case.ours::<f64>(&inputs), &expected, 1e-13);
        assert_close(&case.ours::<f32>(&inputs), &expected, 2e-6);
    }
}

#[test]
fn later_tokens_change_nothing_before_them() {
    let case = Case {
        rows: 1,
        len: 130,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
    };
    let mut inputs = case.inputs();
    let before = case.ours::<f32>(&inputs).remove(0).1;
    let (token, width) = (100, case.kv_heads * case.head_dim);
    for input in &mut inputs[1..] {
        for value in &mut input[token * width..] {
            *value = 7.0 - *value;
        }
    }
    let after = case.ours::<f32>(&inputs).remove(0).1;
    let seen = token * case.heads * case.head_dim;
    assert_eq!(before[..seen], after[..seen]);
    assert!(
        before[seen..]
            .iter()
            .zip(&after[seen..])
            .all(|(before, after)| before.to_bits() != after.to_bits())
    );
}

#[test]
fn large_scores_do_not_overflow() {
    let case = Case {
        rows: 1,
        len: 70,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
    };
    let mut inputs = case.inputs();
    inputs[0].iter_mut().for_each(|value| *value *= 1000.0);
    let outcome = case.ours::<f32>(&inputs);
    assert!(
        outcome
            .iter()
            .all(|(_, values)| values.iter().all(|value| value.is_finite()))
    );
}

#[test]
fn threads_do_not_matter() {
    let case = Case {
        rows: 2,
        len: 150,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
    };
    let inputs = case.inputs();
    assert_thread_independent(|| case.ours::<f32>(&inputs));
}

#[test]
fn wrong_shapes_are_named() {
    let q = tensor::<f32>(&[0.0; 48], &[2, 2, 6, 2]);
    let k = tensor::<f32>(&[0.0; 32], &[2, 2, 4, 2]);
    let error = forward(&Inputs {
        q: &q,
        k: &k,
        v: &k,
        scale: 1.0,
    })
    .unwrap_err()
    .to_string();
    let expected = "as many heads as a divisor of the 6 query heads";
    assert_eq!(
        error,
        format!("attention: `k` has shape [2, 2, 4, 2], expected {expected}")
    );
    let k = k.reshape((2, 4, 2, 2)).unwrap();
    let error = forward(&Inputs {
        q: &q,
        k: &k,
        v: &k,
        scale: 1.0,
    })
    .unwrap_err()
    .to_string();
    assert_eq!(
        error,
        "attention: `k` has shape [2, 4, 2, 2], expected [2, 2, 2, 2]"
    );
    let flat = q.flatten_all().unwrap();
    let error = forward(&Inputs {
        q: &flat,
        k: &k,
        v: &k,
        scale: 1.0,
    })
    .unwrap_err()
    .to_string();
    assert_eq!(
        error,
        "attention: `q` has shape [48], expected [rows, len, heads, head_dim]"
    );
}
