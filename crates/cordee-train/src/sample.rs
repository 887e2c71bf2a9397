//! Text from a model, as it grows.

use std::ops::ControlFlow;

use cordee_data::Tokenizer;
use cordee_memory::View;
use cordee_model::{Model, Sampling, generate};

use crate::TrainError;

/// Continues `prompt`, calling `emit` with each new piece of text, until it breaks off. An empty prompt
/// begins a document.
pub fn continue_text(
    model: &Model,
    parameters: &[View<'_>],
    tokenizer: &Tokenizer,
    prompt: &str,
    sampling: Sampling,
    mut emit: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<(), TrainError> {
    let end_of_text = tokenizer.end_of_text();
    let mut prompt = [tokenizer.begin_of_document(), &tokenizer.encode(prompt)?].concat();
    if prompt.is_empty() {
        prompt.push(end_of_text);
    }
    let mut growing = Growing {
        tokenizer,
        tokens: Vec::new(),
        shown: 0,
    };
    generate(model, parameters, &prompt, end_of_text, sampling, |token| {
        emit(&growing.push(token))
    })?;
    Ok(())
}

/// Text that grows by tokens. A token may end inside a character, so what is new is known only when
/// the character is whole.
struct Growing<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    shown: usize,
}

impl Growing<'_> {
    fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        // Tokens of no text, which a tokenizer may refuse, add none.
        let text = self.tokenizer.decode(&self.tokens).unwrap_or_default();
        let unfinished = text.ends_with(char::REPLACEMENT_CHARACTER);
        match text.get(self.shown..) {
            Some(new) if !unfinished => {
                self.shown = text.len();
                new.to_owned()
            }
            _ => String::new(),
        }
    }
}
