//! The loss of each token from all of its logits.

/// One call: `x` `[n, dim]`, `weight` `[vocab, dim]`, and which tokens count.
pub(crate) struct Head<'a> {
    pub(crate) x: &'a [f64],
    pub(crate) weight: &'a [f64],
    pub(crate) dim: usize,
    pub(crate) targets: &'a [u32],
    pub(crate) counts: &'a [bool],
}

/// Losses, and the gradients of their sum.
pub(crate) struct Results {
    pub(crate) nll: Vec<f64>,
    pub(crate) dx: Vec<f64>,
    pub(crate) dweight: Vec<f64>,
}

impl Head<'_> {
    /// Logits, softmax, -ln of the target's probability; then the gradients: the logits' is the
    /// probability, less 1 at the target.
    pub(crate) fn run(&self) -> Results {
        let dim = self.dim;
        let mut results = Results {
            nll: vec![0.0; self.targets.len()],
            dx: vec![0.0; self.x.len()],
            dweight: vec![0.0; self.weight.len()],
        };
        for (n, &target) in self.targets.iter().enumerate() {
            if !self.counts[n] {
                continue;
            }
            let x = &self.x[n * dim..(n + 1) * dim];
            let rows = self.weight.chunks_exact(dim);
            let logits: Vec<f64> = rows
                .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
                .collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = largest + logits.iter().map(|l| (l - largest).exp()).sum::<f64>().ln();
            results.nll[n] = lse - logits[target as usize];
            for (token, logit) in logits.iter().enumerate() {
                let hit = if token == target as usize { 1.0 } else { 0.0 };
                let dlogit = (logit - lse).exp() - hit;
                for i in 0..dim {
                    results.dx[n * dim + i] += dlogit * self.weight[token * dim + i];
                    results.dweight[token * dim + i] += dlogit * self.x[n * dim + i];
                }
            }
        }
        results
    }
}
