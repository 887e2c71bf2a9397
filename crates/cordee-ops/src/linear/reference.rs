//! Three loops a product.

/// One layer: `x` `[n, input]`, `weight` `[output, input]`, `bias` `[output]`.
pub(crate) struct Layer<'a> {
    pub(crate) x: &'a [f64],
    pub(crate) weight: &'a [f64],
    pub(crate) bias: &'a [f64],
    pub(crate) input: usize,
}

impl Layer<'_> {
    /// y = x W^T + b.
    pub(crate) fn forward(&self) -> Vec<f64> {
        let mut y = Vec::new();
        for x in self.x.chunks_exact(self.input) {
            for (weight, bias) in self.weight.chunks_exact(self.input).zip(self.bias) {
                y.push(x.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>() + bias);
            }
        }
        y
    }

    /// dx = dy W, dW = dy^T x, db the sum of the rows of dy.
    pub(crate) fn backward(&self, dy: &[f64]) -> [Vec<f64>; 3] {
        let (input, output) = (self.input, self.bias.len());
        let mut dx = vec![0.0; self.x.len()];
        let mut dweight = vec![0.0; self.weight.len()];
        let mut dbias = vec![0.0; output];
        for n in 0..self.x.len() / input {
            for o in 0..output {
                let dy = dy[n * output + o];
                for i in 0..input {
                    dx[n * input + i] += dy * self.weight[o * input + i];
                    dweight[o * input + i] += dy * self.x[n * input + i];
                }
                dbias[o] += dy;
            }
        }
        [dx, dweight, dbias]
    }
}
