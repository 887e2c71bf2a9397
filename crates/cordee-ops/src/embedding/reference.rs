//! Rows copied and added, one after the other.

/// Rows of `weight`, `dim` wide, for `tokens`, times `scale`.
pub(crate) fn forward(tokens: &[u32], weight: &[f64], dim: usize, scale: f64) -> Vec<f64> {
    let mut y = Vec::new();
    for &token in tokens {
        for i in 0..dim {
            y.push(weight[token as usize * dim + i] * scale);
        }
    }
    y
}

/// Adds the rows of `dy`, times `scale`, to those of `dweight`.
pub(crate) fn backward(tokens: &[u32], dy: &[f64], scale: f64, dweight: &mut [f64]) {
    let dim = dy.len() / tokens.len();
    for (n, &token) in tokens.iter().enumerate() {
        for i in 0..dim {
            dweight[token as usize * dim + i] += dy[n * dim + i] * scale;
        }
    }
}
