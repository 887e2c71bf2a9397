//! The norm, row by row, as its formula reads.

/// What is normalised, and how. `gains` are the full ones, an offset included.
pub(crate) struct Rows<'a> {
    pub(crate) x: &'a [f64],
    pub(crate) gains: &'a [f64],
    pub(crate) eps: f64,
}

impl Rows<'_> {
    fn rstd(&self, row: usize) -> f64 {
        let dim = self.gains.len();
        let x = &self.x[row * dim..(row + 1) * dim];
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
        1.0 / (mean_square + self.eps).sqrt()
    }

    /// y = x * rstd * gain.
    pub(crate) fn forward(&self) -> Vec<f64> {
        let dim = self.gains.len();
        let y = |i: usize| self.x[i] * self.rstd(i / dim) * self.gains[i % dim];
        (0..self.x.len()).map(y).collect()
    }

    /// dx and the gradient of the gains.
    pub(crate) fn backward(&self, dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let dim = self.gains.len();
        let mut dx = vec![0.0; self.x.len()];
        let mut dgains = vec![0.0; dim];
        for row in 0..self.x.len() / dim {
            let rstd = self.rstd(row);
            let at = |column: usize| row * dim + column;
            let mut product = 0.0;
            for column in 0..dim {
                product += dy[at(column)] * self.gains[column] * self.x[at(column)];
                dgains[column] += dy[at(column)] * self.x[at(column)] * rstd;
            }
            // d rstd / d x_j = -rstd^3 x_j / dim
            for column in 0..dim {
                dx[at(column)] = rstd * dy[at(column)] * self.gains[column]
                    - product * rstd.powi(3) * self.x[at(column)] / dim as f64;
            }
        }
        (dx, dgains)
    }
}
