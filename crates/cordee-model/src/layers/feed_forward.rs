//! Feed-forward layers: gated (Shazeer, arXiv:2002.05202), and plain.

use candle_core::Tensor;
use cordee_config::ModelConfig;
use cordee_ops::{
    geglu,
    gelu::{self, Approximation},
    swiglu,
};

use super::{Projection, attention::into_residual_std, backward_together, forward_together};
use crate::{Gradients, Keep, ModelError, Weights, parameter::ParameterList};

/// A feed-forward layer of one kind.
pub(crate) trait FeedForward: Send + Sync {
    /// What is kept of a forward.
    type Kept: Send + 'static;

    /// What is added to the residual stream, from its norm; both `[tokens, dim]`. With `residual`, the
    /// sum with that.
    fn forward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        keep: Keep,
    ) -> Result<(Tensor, Self::Kept), ModelError>;

    /// Elements that a forward keeps of a token.
    fn kept_per_token(&self, keep: Keep) -> usize;

    /// The gradient of the input `x` from that of what was added.
    fn backward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        kept: Self::Kept,
        dy: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError>;
}

/// Activations that gate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gate {
    Silu,
    Gelu(Approximation),
}

impl Gate {
    fn forward(self, gate: &Tensor, up: &Tensor) -> Result<Tensor, ModelError> {
        Ok(match self {
            Self::Silu => swiglu::forward(gate, up)?,
            Self::Gelu(approximation) => geglu::forward(gate, up, approximation)?,
        })
    }

    fn backward(
        self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
    ) -> Result<(Tensor, Tensor), ModelError> {
        Ok(match self {
            Self::Silu => swiglu::backward(dy, gate, up)?,
            Self::Gelu(approximation) => geglu::backward(dy, gate, up, approximation)?,
        })
    }
}

/// down(activation(gate(x)) * up(x)).
pub(crate) struct GatedFeedForward {
    gate: Projection,
    up: Projection,
    down: Projection,
    activation: Gate,
    width: usize,
}

pub(crate) struct KeptGated {
    gate: Tensor,
    up: Tensor,
    activated: Option<Tensor>,
}

impl GatedFeedForward {
    /// Under the names that Llama gave.
    pub(crate) fn new(list: &mut ParameterList, config: &ModelConfig, activation: Gate) -> Self {
        let ModelConfig {
            dim, ffn, init_std, ..
        } = *config;
        let down_std = into_residual_std(config);
        Self {
            gate: Projection::new(list, "mlp.gate_proj", [ffn, dim], init_std),
            up: Projection::new(list, "mlp.up_proj", [ffn, dim], init_std),
            down: Projection::new(list, "mlp.down_proj", [dim, ffn], down_std),
            activation,
            width: ffn,
        }
    }
}

impl FeedForward for GatedFeedForward {
    type Kept = KeptGated;

    fn forward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        keep: Keep,
    ) -> Result<(Tensor, KeptGated), ModelError> {
        let outputs = forward_together(weights, x, [&self.gate, &self.up])?;
        let (gate, up) = (outputs.get(0)?, outputs.get(1)?);
        let activated = self.activation.forward(&gate, &up)?;
        let y = self.down.forward(weights, &activated, residual)?;
        let kept = KeptGated {
            gate,
            up,
            activated: keep.cheap(activated),
        };
        Ok((y, kept))
    }

    fn kept_per_token(&self, keep: Keep) -> usize {
        2 * self.width + keep.of_cheap(self.width)
    }

    fn backward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        kept: KeptGated,
        dy: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let KeptGated {
            gate,
            up,
            activated,
        } = kept;
        let activated = match activated {
            Some(activated) => activated,
            None => self.activation.forward(&gate, &up)?,
        };
        let dactivated = self.down.backward(weights, dy, &activated, gradients)?;
        drop(activated);
        let (dgate, dup) = self.activation.backward(&dactivated, &gate, &up)?;
        drop((dactivated, gate, up));
        let outputs = [(&self.gate, &dgate), (&self.up, &dup)];
        backward_together(weights, outputs, x, gradients)
    }
}

/// down(gelu(up(x))), GPT-2's.
pub(crate) struct PlainFeedForward {
    up: Projection,
    down: Projection,
    approximation: Approximation,
    width: usize,
}

pub(crate) struct KeptPlain {
    up: Tensor,
    activated: Option<Tensor>,
}

impl PlainFeedForward {
    /// Under the names that GPT-2 gave.
    pub(crate) fn new(
        list: &mut ParameterList,
        config: &ModelConfig,
        approximation: Approximation,
    ) -> Self {
        let ModelConfig {
            dim, ffn, init_std, ..
        } = *config;
        let down_std = into_residual_std(config);
        Self {
            up: Projection::conv1d(list, "mlp.c_fc", [ffn, dim], init_std),
            down: Projection::conv1d(list, "mlp.c_proj", [dim, ffn], down_std),
            approximation,
            width: ffn,
        }
    }
}

impl FeedForward for PlainFeedForward {
    type Kept = KeptPlain;

    fn forward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        keep: Keep,
    ) -> Result<(Tensor, KeptPlain), ModelError> {
        let up = self.up.forward(weights, x, None)?;
        let activated = gelu::forward(&up, self.approximation)?;
        let y = self.down.forward(weights, &activated, residual)?;
        let activated = keep.cheap(activated);
        Ok((y, KeptPlain { up, activated }))
    }

    fn kept_per_token(&self, keep: Keep) -> usize {
        self.width + keep.of_cheap(self.width)
    }

    fn backward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        kept: KeptPlain,
        dy: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let KeptPlain { up, activated } = kept;
        let activated = match activated {
            Some(activated) => activated,
            None => gelu::forward(&up, self.approximation)?,
        };
        let dactivated = self.down.backward(weights, dy, &activated, gradients)?;
        let dup = gelu::backward(&dactivated, &up, self.approximation)?;
        self.up.backward(weights, &dup, x, gradients)
    }
}
