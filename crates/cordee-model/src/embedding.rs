//! The first segment: tokens become vectors.

use candle_core::Tensor;
use cordee_ops::embedding;

use crate::{Context, Gradients, Init, ModelError, Parameter, Weights};

/// A table of one vector per token.
#[derive(Debug)]
pub struct Embedding {
    parameters: [Parameter; 1],
}

impl Embedding {
    const TABLE: usize = 0;

    /// A table of `vocab_size` vectors of width `dim`.
    pub fn new(vocab_size: usize, dim: usize, init_std: f64) -> Self {
        let table = Parameter::new(
            "model.embed_tokens.weight",
            &[vocab_size, dim],
            Init::Normal { std: init_std },
        );
        Self {
            parameters: [table],
        }
    }

    /// The table.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The vectors of the input tokens, `[rows × seq_len, dim]`.
    pub fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
    ) -> Result<Tensor, ModelError> {
        context.validate()?;
        Ok(embedding::forward(
            context.inputs,
            weights.get(Self::TABLE),
            1.0,
        )?)
    }

    /// Adds the gradient of each token's vector. A tied head has added its own before.
    pub fn backward(
        &self,
        context: &Context<'_>,
        dy: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<(), ModelError> {
        Ok(embedding::backward(
            context.inputs,
            dy,
            1.0,
            gradients.get(Self::TABLE),
        )?)
    }
}
