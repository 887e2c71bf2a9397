//! Continuing a prompt, token by token.
//!
//! Each token runs the model over the whole context again: plain and right. Keys and values are not
//! cached.

use std::ops::ControlFlow;

use cordee_memory::View;
use cordee_ops::{Sequences, transfer};

use crate::{Context, Keep, Model, ModelError, Weights};

/// How a prompt is continued.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The most tokens to add.
    pub max_tokens: usize,
    /// Logits are divided by it; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only the likeliest tokens that together reach this probability are drawn from.
    pub top_p: f64,
    /// Decides the draws.
    pub seed: u64,
}

/// Continues `prompt`, calling `emit` with each token, until it breaks off or at `end_of_text`. Once the
/// context is full, its oldest tokens are dropped.
pub fn generate(
    model: &Model,
    parameters: &[View<'_>],
    prompt: &[u32],
    end_of_text: u32,
    sampling: Sampling,
    mut emit: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<(), ModelError> {
    if prompt.is_empty() {
        return Err(ModelError::EmptyPrompt);
    }
    let mut tokens = prompt.to_vec();
    let mut draws = Draws(sampling.seed);
    for _ in 0..sampling.max_tokens {
        let context = &tokens[tokens.len().saturating_sub(model.max_seq_len())..];
        let logits = last_logits(model, parameters, context)?;
        let next = choose(&logits, sampling, draws.next());
        if next == end_of_text || emit(next).is_break() {
            break;
        }
        tokens.push(next);
    }
    Ok(())
}

/// The logits that follow `tokens`, one for each row of the embedding's table.
pub fn last_logits(
    model: &Model,
    parameters: &[View<'_>],
    tokens: &[u32],
) -> Result<Vec<f32>, ModelError> {
    let context = Context {
        sequences: Sequences::Rows(tokens.len()),
        inputs: tokens,
        targets: &[],
        loss_mask: None,
    };
    let x = model.forward(&context, parameters, Keep::Dear, drop)?;
    let last = x.narrow(0, tokens.len() - 1, 1)?;
    let head = model.segments() - 1;
    let logits = model
        .head
        .logits(Weights::new(parameters, model.ids(head)), &last)?;
    let logits = transfer::to_vec(&logits)?;
    if logits.iter().any(|logit| logit.is_nan()) {
        return Err(ModelError::NotANumber);
    }
    Ok(logits)
}

/// Draws a token: nucleus sampling (Holtzman et al., arXiv:1904.09751). `uniform` is in `[0, 1)`.
fn choose(logits: &[f32], sampling: Sampling, uniform: f64) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    // Ties go to the smaller token, so that the choice does not depend on the sort.
    order.sort_by(|&a, &b| {
        logits[b as usize]
            .total_cmp(&logits[a as usize])
            .then(a.cmp(&b))
    });
    let likeliest = order[0];
    if sampling.temperature == 0.0 {
        return likeliest;
    }
    let top = f64::from(logits[likeliest as usize]);
    let weight =
        |token: u32| ((f64::from(logits[token as usize]) - top) / sampling.temperature).exp();
    let total: f64 = order.iter().map(|&token| weight(token)).sum();
    let mut nucleus = 0.0;
    let kept = order
        .iter()
        .take_while(|&&token| {
            let take = nucleus < sampling.top_p * total;
            nucleus += if take { weight(token) } else { 0.0 };
            take
        })
        .count()
        .max(1);
    let mut remaining = uniform * nucleus.max(weight(likeliest));
    for &token in &order[..kept] {
        remaining -= weight(token);
        if remaining < 0.0 {
            return token;
        }
    }
    order[kept - 1]
}

/// Uniform numbers from a counter: `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f64, top_p: f64) -> Sampling {
        Sampling {
            max_tokens: 1,
            temperature,
            top_p,
            seed: 0,
        }
    }

    #[test]
    fn temperature_zero_takes_the_likeliest() {
        assert_eq!(choose(&[0.1, 2.0, 1.9], sampling(0.0, 1.0), 0.99), 1);
    }

    #[test]
    fn a_small_nucleus_leaves_only_the_likeliest() {
        for uniform in [0.0, 0.5, 0.999] {
            assert_eq!(choose(&[0.1, 2.0, 1.9], sampling(1.0, 0.01), uniform), 1);
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        // Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8.
        let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln()];
        let mut draws = Draws(7);
        let mut counts = [0_u32; 3];
        for _ in 0..8000 {
            counts[choose(&logits, sampling(1.0, 1.0), draws.next()) as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([1000.0, 2000.0, 5000.0]) {
            assert!((f64::from(*count) - expected).abs() < 150.0, "{counts:?}");
        }
    }

    #[test]
    fn the_last_token_of_the_nucleus_can_be_drawn() {
        // The two likeliest, 5/8 and 2/8, reach 0.8 together.
        let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln()];
        assert_eq!(choose(&logits, sampling(1.0, 0.8), 0.99), 1);
        assert_eq!(choose(&logits, sampling(1.0, 0.8), 0.0), 2);
    }
}
