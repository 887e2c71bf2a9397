//! The last segment: a norm, the output matrix, and the loss.

use candle_core::Tensor;
use cordee_config::{ModelConfig, ModelFamily};
use cordee_memory::ViewMut;
use cordee_ops::head::{self, Losses, Sums, Targets};

use crate::{
    Context, Gradients, Init, ModelError, Parameter, Weights,
    layers::{Norm, NormBackward},
    parameter::ParameterList,
};

/// Name of an output matrix that is not the embedding's table.
pub(crate) const OUTPUT_NAME: &str = "lm_head.weight";

/// The final norm and the output matrix. With tied embeddings the matrix is the embedding's table,
/// lent as this segment's last weight.
#[derive(Debug)]
pub struct Head {
    parameters: Vec<Parameter>,
    norm: Norm,
    output: usize,
    tied: bool,
}

impl Head {
    /// A head over `vocab_size` tokens.
    pub fn new(config: &ModelConfig, vocab_size: usize) -> Self {
        let mut list = ParameterList::new("");
        let name = match config.family {
            ModelFamily::Gpt2 => "transformer.ln_f",
            _ => "model.norm",
        };
        let norm = Norm::new(&mut list, name, config.dim, config);
        if !config.tie_embeddings {
            let init = Init::Normal {
                std: config.init_std,
            };
            list.add(OUTPUT_NAME, &[vocab_size, config.dim], init);
        }
        let parameters = list.finish();
        Self {
            norm,
            output: parameters.len() - usize::from(!config.tie_embeddings),
            tied: config.tie_embeddings,
            parameters,
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
        let normed = self.norm.forward(weights, x)?.y;
        Ok(head::logits(&normed, weights.get(self.output))?)
    }

    /// The losses of the micro-batch; adds their sum to `nll`, `f64` `[1]`.
    pub fn loss(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: &Tensor,
        nll: &mut ViewMut<'_>,
    ) -> Result<Losses, ModelError> {
        let normed = self.norm.forward(weights, x)?.y;
        let output = weights.get(self.output);
        Ok(head::loss(&normed, output, &targets(context), nll)?)
    }

    /// The losses, whose sum is added to `nll`, `f64` `[1]`, and the gradient of that sum with respect
    /// to `x`. Not divided by the number of trained tokens, which only all ranks and micro-batches
    /// together know.
    pub fn loss_and_gradient(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: &Tensor,
        gradients: &mut Gradients<'_, '_>,
        nll: &mut ViewMut<'_>,
    ) -> Result<(Losses, Tensor), ModelError> {
        let normed = self.norm.forward(weights, x)?;
        let output = weights.get(self.output);
        let (dweight, write) = gradients.write(self.output);
        let sums = Sums {
            nll: nll.reborrow(),
            dweight: dweight.reborrow(),
            write,
        };
        let (losses, dnormed) =
            head::loss_and_gradient(&normed.y, output, &targets(context), sums)?;
        let norm = NormBackward {
            dy: &dnormed,
            x,
            statistics: &normed.statistics,
            residual: None,
        };
        Ok((losses, self.norm.backward(weights, &norm, gradients)?))
    }
}

fn targets<'a>(context: &Context<'a>) -> Targets<'a> {
    Targets {
        tokens: context.targets,
        mask: context.loss_mask,
    }
}
