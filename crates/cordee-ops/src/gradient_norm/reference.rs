//! One sum, and what is made of it.

/// The sum of squares.
pub(crate) fn sum_of_squares(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}

/// 1 / tokens, less where the mean's norm is larger than `max_norm`; 0 clips nothing.
pub(crate) fn scale(sum: f64, tokens: f64, max_norm: f64) -> f64 {
    let norm = sum.sqrt() / tokens;
    if max_norm > 0.0 && norm + 1e-6 > max_norm {
        max_norm / (norm + 1e-6) / tokens
    } else {
        1.0 / tokens
    }
}
