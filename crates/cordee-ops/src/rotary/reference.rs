//! Each pair of each head, turned as a complex number is.

use super::Scaling;

/// Heads of width `head_dim`, whose positions are given for each token.
pub(crate) struct Rotation<'a> {
    pub(crate) positions: &'a [usize],
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) theta: f64,
    pub(crate) scaling: Scaling,
}

impl Rotation<'_> {
    /// Radians a position of pair `i`; the scaled ones as transformers computes them
    /// (`modeling_rope_utils.py`).
    fn frequency(&self, i: usize) -> f64 {
        let plain = 1.0 / self.theta.powf(2.0 * i as f64 / self.head_dim as f64);
        match self.scaling {
            Scaling::None => plain,
            Scaling::Linear { factor } => plain / factor,
            Scaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let original = original_max_positions as f64;
                let wavelength = 2.0 * std::f64::consts::PI / plain;
                if wavelength > original / low_freq_factor {
                    plain / factor
                } else if wavelength < original / high_freq_factor {
                    plain
                } else {
                    let smooth = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
        }
    }

    fn turn(&self, x: &[f64], direction: f64) -> Vec<f64> {
        let half = self.head_dim / 2;
        let mut y = vec![0.0; x.len()];
        for (token, &position) in self.positions.iter().enumerate() {
            for head in 0..self.heads {
                let start = (token * self.heads + head) * self.head_dim;
                for i in 0..half {
                    let angle = direction * position as f64 * self.frequency(i);
                    let (a, b) = (x[start + i], x[start + half + i]);
                    y[start + i] = a * angle.cos() - b * angle.sin();
                    y[start + half + i] = a * angle.sin() + b * angle.cos();
                }
            }
        }
        y
    }

    /// Every pair turned by its position times its frequency.
    pub(crate) fn forward(&self, x: &[f64]) -> Vec<f64> {
        self.turn(x, 1.0)
    }

    /// Turned back.
    pub(crate) fn backward(&self, dy: &[f64]) -> Vec<f64> {
        self.turn(dy, -1.0)
    }
}
