//! The norm, row by row, as its formula reads.

/// What is normalised, and how.
pub(crate) struct Rows<'a> {
    pub(crate) x: &'a [f64],
    pub(crate) weight: &'a [f64],
    pub(crate) bias: &'a [f64],
    pub(crate) eps: f64,
}

impl Rows<'_> {
    /// (x - mean) / sqrt(variance + eps) of a row, and the root's reciprocal.
    fn normalised(&self, row: usize) -> (Vec<f64>, f64) {
        let dim = self.weight.len();
        let x = &self.x[row * dim..(row + 1) * dim];
        let mean = x.iter().sum::<f64>() / dim as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / dim as f64;
        let rstd = 1.0 / (variance + self.eps).sqrt();
        (x.iter().map(|x| (x - mean) * rstd).collect(), rstd)
    }

    /// y = normalised * weight + bias.
    pub(crate) fn forward(&self) -> Vec<f64> {
        let dim = self.weight.len();
        let mut y = Vec::new();
        for row in 0..self.x.len() / dim {
            let (normalised, _) = self.normalised(row);
            for (normalised, (weight, bias)) in
                normalised.iter().zip(self.weight.iter().zip(self.bias))
            {
                y.push(normalised * weight + bias);
            }
        }
        y
    }

    /// dx and the gradients of weight and bias.
    pub(crate) fn backward(&self, dy: &[f64]) -> [Vec<f64>; 3] {
        let dim = self.weight.len();
        let (mut dx, mut dweight, mut dbias) = (Vec::new(), vec![0.0; dim], vec![0.0; dim]);
        for row in 0..self.x.len() / dim {
            let (normalised, rstd) = self.normalised(row);
            let dy = &dy[row * dim..(row + 1) * dim];
            let g: Vec<f64> = (0..dim).map(|i| dy[i] * self.weight[i]).collect();
            let mean = g.iter().sum::<f64>() / dim as f64;
            let product = (0..dim).map(|i| g[i] * normalised[i]).sum::<f64>() / dim as f64;
            for i in 0..dim {
                dx.push(rstd * (g[i] - mean - normalised[i] * product));
                dweight[i] += dy[i] * normalised[i];
                dbias[i] += dy[i];
            }
        }
        [dx, dweight, dbias]
    }
}
