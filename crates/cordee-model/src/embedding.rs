//! The first segment: tokens become vectors.

use candle_core::Tensor;
use cordee_config::{ModelConfig, ModelFamily};
use cordee_ops::{embedding, residual};

use crate::{Context, Gradients, Init, ModelError, Parameter, Weights, parameter::ParameterList};

/// A table of one vector per token, and one per position where positions are learned.
#[derive(Debug)]
pub struct Embedding {
    parameters: Vec<Parameter>,
    /// What the tokens' vectors are multiplied with.
    scale: f64,
    /// Index of the table of positions.
    positions: Option<usize>,
}

impl Embedding {
    const TABLE: usize = 0;

    /// A table of `vocab_size` vectors, for sequences of at most `max_positions` where positions
    /// are learned.
    pub fn new(config: &ModelConfig, vocab_size: usize, max_positions: usize) -> Self {
        let normal = Init::Normal {
            std: config.init_std,
        };
        let mut list = ParameterList::new("");
        let mut positions = None;
        if config.family == ModelFamily::Gpt2 {
            list.add("transformer.wte.weight", &[vocab_size, config.dim], normal);
            let shape = [max_positions, config.dim];
            positions = Some(list.add("transformer.wpe.weight", &shape, normal));
        } else {
            let shape = [vocab_size, config.dim];
            list.add("model.embed_tokens.weight", &shape, normal);
        }
        let scale = match config.family {
            ModelFamily::Gemma3 => (config.dim as f64).sqrt(),
            _ => 1.0,
        };
        Self {
            parameters: list.finish(),
            scale,
            positions,
        }
    }

    /// The tables; that of the tokens is the first.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The vectors of the input tokens, `[tokens, dim]`.
    pub fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
    ) -> Result<Tensor, ModelError> {
        context.validate()?;
        let table = weights.get(Self::TABLE);
        let x = embedding::forward(context.inputs, table, self.scale)?;
        match self.positions {
            None => Ok(x),
            Some(table) => {
                let positions = embedding::forward(&positions(context), weights.get(table), 1.0)?;
                Ok(residual::forward(&x, &positions)?)
            }
        }
    }

    /// Adds the gradient of each token's vector. A tied head has added its own before.
    pub fn backward(
        &self,
        context: &Context<'_>,
        dy: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<(), ModelError> {
        let table = gradients.get(Self::TABLE)?;
        embedding::backward(context.inputs, dy, self.scale, table)?;
        if let Some(table) = self.positions {
            embedding::backward(&positions(context), dy, 1.0, gradients.get(table)?)?;
        }
        Ok(())
    }
}

/// The position of each token in its sequence.
fn positions(context: &Context<'_>) -> Vec<u32> {
    let positions = context.sequences.positions(0..context.tokens());
    positions.map(|position| position as u32).collect()
}
