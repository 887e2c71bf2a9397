//! The last segment: a norm, the output matrix, and the loss.

use candle_core::Tensor;
use cordee_ops::{
    head::{self, LossSum, Targets},
    rms_norm::{self, Norm, Normed},
};

use crate::{Context, Gradients, Init, ModelError, Parameter, Weights};

/// The final norm and the output matrix. With tied embeddings the matrix is the embedding's table,
/// lent as this segment's second weight.
#[derive(Debug)]
pub struct Head {
    parameters: Vec<Parameter>,
    tied: bool,
    norm: Norm,
}

impl Head {
    const NORM: usize = 0;
    const OUTPUT: usize = 1;

    /// A head over `vocab_size` tokens.
    pub fn new(vocab_size: usize, dim: usize, config: &cordee_config::ModelConfig) -> Self {
        let mut parameters = vec![Parameter::new("model.norm.weight", &[dim], Init::Ones)];
        if !config.tie_embeddings {
            let init = Init::Normal {
                std: config.init_std,
            };
            parameters.push(Parameter::new("lm_head.weight", &[vocab_size, dim], init));
        }
        Self {
            parameters,
            tied: config.tie_embeddings,
            norm: Norm {
                eps: config.norm_eps,
                unit_offset: false,
            },
        }
    }

    /// The parameters that are this segment's own.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Whether the output matrix is the embedding's table.
    pub fn tied(&self) -> bool {
        self.tied
    }

    /// The logits of every position of `x`, `[n, vocab]`: for a few rows only.
    pub fn logits(&self, weights: Weights<'_>, x: &Tensor) -> Result<Tensor, ModelError> {
        let Normed { y: normed, .. } = rms_norm::forward(x, weights.get(Self::NORM), self.norm)?;
        Ok(head::logits(&normed, weights.get(Self::OUTPUT))?)
    }

    /// The loss of each row of the micro-batch.
    pub fn loss(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: &Tensor,
    ) -> Result<LossSum, ModelError> {
        let Normed { y: normed, .. } = rms_norm::forward(x, weights.get(Self::NORM), self.norm)?;
        let targets = Targets {
            tokens: context.targets,
            mask: context.loss_mask,
        };
        Ok(head::loss(&normed, weights.get(Self::OUTPUT), &targets)?)
    }

    /// The loss, and the gradient of its sum with respect to `x`. Not divided by the number of
    /// trained tokens, which only all ranks and micro-batches together know.
    pub fn loss_and_gradient(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<(LossSum, Tensor), ModelError> {
        let Normed { y: normed, rstd } = rms_norm::forward(x, weights.get(Self::NORM), self.norm)?;
        let targets = Targets {
            tokens: context.targets,
            mask: context.loss_mask,
        };
        let output = gradients.get(Self::OUTPUT);
        let (loss, dnormed) =
            head::loss_and_gradient(&normed, weights.get(Self::OUTPUT), &targets, output)?;
        let norm = rms_norm::Backward {
            norm: self.norm,
            dy: &dnormed,
            x,
            weight: weights.get(Self::NORM),
            rstd: &rstd,
            residual: None,
        };
        Ok((loss, rms_norm::backward(&norm, gradients.get(Self::NORM))?))
    }
}
