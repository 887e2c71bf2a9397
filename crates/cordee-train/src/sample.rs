//! A short text from the model, so that a person sees what it has learned.

use cordee_data::Tokenizer;
use cordee_memory::View;
use cordee_model::{Model, Sampling, generate};

use crate::TrainError;

/// What `model` continues `prompt` with.
pub(crate) fn sample(
    model: &Model,
    parameters: &[View<'_>],
    tokenizer: &Tokenizer,
    prompt: &str,
    max_tokens: usize,
    seed: u64,
) -> Result<String, TrainError> {
    let sampling = Sampling {
        temperature: 0.8,
        top_p: 0.95,
        seed,
    };
    let mut tokens = Vec::new();
    let prompt = tokenizer.encode(prompt)?;
    generate(
        model,
        parameters,
        &prompt,
        max_tokens,
        tokenizer.end_of_text(),
        sampling,
        |token| tokens.push(token),
    )?;
    Ok(tokenizer.decode(&tokens)?)
}
