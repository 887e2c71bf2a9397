use candle_core::{D, Device, Tensor};

use super::{Inputs, backward, forward};
use crate::{
    Sequences,
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
    window: Option<usize>,
}

impl Case {
    fn queries(&self) -> [usize; 3] {
        [self.rows * self.len, self.heads, self.head_dim]
    }

    fn keys(&self) -> [usize; 3] {
        [self.rows * self.len, self.kv_heads, self.head_dim]
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
            sequences: Sequences::Rows(self.len),
            window: self.window,
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
            let keys = keys.reshape((self.rows, self.len, self.kv_heads, self.head_dim));
            let keys = keys.unwrap().transpose(1, 2).unwrap().unsqueeze(2).unwrap();
            let shape = (self.rows, self.kv_heads, group, self.len, self.head_dim);
            let keys = keys.broadcast_as(shape).unwrap();
            keys.reshape((self.rows, self.heads, self.len, self.head_dim))
                .unwrap()
        };
        let mask: Vec<f64> = (0..self.len * self.len)
            .map(|i| {
                let (query, key) = (i / self.len, i % self.len);
                let far = self.window.is_some_and(|window| key + window <= query);
                if key > query || far { -1e9 } else { 0.0 }
            })
            .collect();
        let mask = Tensor::from_vec(mask, (1, 1, self.len, self.len), &Device::Cpu).unwrap();
        let queries = q.reshape((self.rows, self.len, self.heads, self.head_dim));
        let queries = queries
            .unwrap()
            .transpose(1, 2)
            .unwrap()
            .contiguous()
            .unwrap();
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
            .unwrap()
            .reshape(&self.queries()[..])
            .unwrap();
        // One row after the other here, one head after the other there.
        let lse = (largest + sums.log().unwrap()).unwrap();
        let lse = lse.squeeze(3).unwrap().transpose(0, 1).unwrap();
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
    for window in [None, Some(3)] {
        let case = Case {
            rows: 2,
            len: 5,
            heads: 6,
            kv_heads: 2,
            head_dim: 3,
            window,
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
            window: None,
        },
        Case {
            rows: 2,
            len: 64,
            heads: 2,
            kv_heads: 2,
            head_dim: 16,
            window: None,
        },
        Case {
            rows: 2,
            len: 65,
            heads: 6,
            kv_heads: 2,
            head_dim: 8,
            window: None,
        },
        Case {
            rows: 1,
            len: 150,
            heads: 3,
            kv_heads: 1,
            head_dim: 5,
            window: None,
        },
        Case {
            rows: 2,
            len: 150,
            heads: 2,
            kv_heads: 1,
            head_dim: 6,
            window: Some(2),
        },
        Case {
            rows: 2,
            len: 200,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            window: Some(37),
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
        window: None,
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
        window: None,
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
        window: None,
    };
    let inputs = case.inputs();
    assert_thread_independent(|| case.ours::<f32>(&inputs));
}

/// A batch of documents is the documents, one by one.
#[test]
fn documents_do_not_see_each_other() {
    let bounds = [0, 1, 71, 72, 130];
    let (heads, kv_heads, head_dim) = (4, 2, 8);
    let tokens = 130;
    let q = normals("q", tokens * heads * head_dim);
    let k = normals("k", tokens * kv_heads * head_dim);
    let v = normals("v", tokens * kv_heads * head_dim);
    let dout = normals("dout", q.len());
    // out, dq, dk and dv of some of the tokens, and the log-sum-exp of the first head.
    let run = |range: std::ops::Range<usize>, sequences| {
        let part = |data: &[f64], heads: usize| {
            let width = heads * head_dim;
            let part = &data[range.start * width..range.end * width];
            tensor::<f32>(part, &[range.len(), heads, head_dim])
        };
        let (q, k, v) = (part(&q, heads), part(&k, kv_heads), part(&v, kv_heads));
        let inputs = Inputs {
            q: &q,
            k: &k,
            v: &v,
            scale: 0.5,
            sequences,
            window: Some(20),
        };
        let attended = forward(&inputs).unwrap();
        let gradients = backward(&part(&dout, heads), &inputs, &attended).unwrap();
        let lse = values(&attended.lse)[..range.len()].to_vec();
        let rest = [attended.out, gradients.dq, gradients.dk, gradients.dv];
        let mut results: Vec<_> = rest.iter().map(values).collect();
        results.push(lse);
        results
    };
    let whole = run(0..tokens, Sequences::Documents(&bounds));
    let mut parts = vec![Vec::new(); 5];
    for pair in bounds.windows(2) {
        let range = pair[0] as usize..pair[1] as usize;
        let sequence = Sequences::Rows(range.len());
        for (part, result) in parts.iter_mut().zip(run(range, sequence)) {
            part.extend(result);
        }
    }
    assert_eq!(whole, parts);
}

#[test]
fn wrong_operands_are_named() {
    let q = tensor::<f32>(&[0.0; 48], &[4, 6, 2]);
    let k = tensor::<f32>(&[0.0; 32], &[4, 4, 2]);
    let message = |q: &Tensor, k: &Tensor, sequences, window| {
        let inputs = Inputs {
            q,
            k,
            v: k,
            scale: 1.0,
            sequences,
            window,
        };
        forward(&inputs).unwrap_err().to_string()
    };
    let rows = Sequences::Rows(2);
    assert_eq!(
        message(&q, &k, rows, None),
        "attention: `k` has shape [4, 4, 2], expected as many heads as a divisor of the 6 query \
         heads"
    );
    let k = k.reshape((8, 2, 2)).unwrap();
    assert_eq!(
        message(&q, &k, rows, None),
        "attention: `k` has shape [8, 2, 2], expected [4, 2, 2]"
    );
    assert_eq!(
        message(&q.flatten_all().unwrap(), &k, rows, None),
        "attention: `q` has shape [48], expected [tokens, heads, head_dim]"
    );
    assert_eq!(
        message(&q, &q, Sequences::Rows(3), None),
        "attention: `tokens` has shape [4], expected whole sequences of 3 tokens"
    );
    assert_eq!(
        message(&q, &q, rows, Some(0)),
        "attention: `window` is 0, expected 1 or more: every token sees itself"
    );
}
