//! Every query against every key it sees, one after the other.

/// One call. `sequence_of` names the sequence of each token.
pub(crate) struct Reference<'a> {
    pub(crate) q: &'a [f64],
    pub(crate) k: &'a [f64],
    pub(crate) v: &'a [f64],
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f64,
    pub(crate) sequence_of: &'a [usize],
    pub(crate) window: Option<usize>,
}

/// What the reference computes, forward and backward.
pub(crate) struct Results {
    pub(crate) out: Vec<f64>,
    pub(crate) lse: Vec<f64>,
    pub(crate) dq: Vec<f64>,
    pub(crate) dk: Vec<f64>,
    pub(crate) dv: Vec<f64>,
}

impl Reference<'_> {
    fn sees(&self, query: usize, key: usize) -> bool {
        self.sequence_of[query] == self.sequence_of[key]
            && key <= query
            && self.window.is_none_or(|window| query - key < window)
    }

    /// The vector of one query head of one token.
    fn query<'d>(&self, data: &'d [f64], token: usize, head: usize) -> &'d [f64] {
        &data[(token * self.heads + head) * self.head_dim..][..self.head_dim]
    }

    /// Where the vector of the key head that a query head reads begins.
    fn key(&self, token: usize, head: usize) -> usize {
        let kv_head = head / (self.heads / self.kv_heads);
        (token * self.kv_heads + kv_head) * self.head_dim
    }

    /// Forward and backward together.
    pub(crate) fn run(&self, dout: &[f64]) -> Results {
        let tokens = self.sequence_of.len();
        let mut results = Results {
            out: vec![0.0; self.q.len()],
            lse: vec![0.0; self.heads * tokens],
            dq: vec![0.0; self.q.len()],
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.v.len()],
        };
        for head in 0..self.heads {
            for query in 0..tokens {
                self.run_query(head, query, self.query(dout, query, head), &mut results);
            }
        }
        results
    }

    fn run_query(&self, head: usize, query: usize, dout: &[f64], results: &mut Results) {
        let (width, tokens) = (self.head_dim, self.sequence_of.len());
        let q = self.query(self.q, query, head);
        let keys: Vec<usize> = (0..tokens).filter(|&key| self.sees(query, key)).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let vectors = |data: &'_ [f64], of: &[f64]| -> Vec<f64> {
            let vector = |&key: &usize| dot(of, &data[self.key(key, head)..][..width]);
            keys.iter().map(vector).collect()
        };
        let scores: Vec<f64> = vectors(self.k, q).iter().map(|s| s * self.scale).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = largest + scores.iter().map(|s| (s - largest).exp()).sum::<f64>().ln();
        let probabilities: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
        let dprobabilities = vectors(self.v, dout);
        let mean = dot(&probabilities, &dprobabilities);

        results.lse[head * tokens + query] = lse;
        let start = (query * self.heads + head) * width;
        for (index, &key) in keys.iter().enumerate() {
            let p = probabilities[index];
            let dscore = p * (dprobabilities[index] - mean) * self.scale;
            let at = self.key(key, head);
            for i in 0..width {
                results.out[start + i] += p * self.v[at + i];
                results.dq[start + i] += dscore * self.k[at + i];
                results.dk[at + i] += dscore * q[i];
                results.dv[at + i] += p * dout[i];
            }
        }
    }
}
