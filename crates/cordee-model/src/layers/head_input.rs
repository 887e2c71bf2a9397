//! Queries or keys on their way from their projection to the attention: normalised head by head
//! where the family does so, and rotated to their positions where it has rotary ones.

use std::sync::Arc;

use candle_core::Tensor;
use cordee_ops::rotary;

use super::{Norm, NormBackward, Statistics};
use crate::{Context, Gradients, Keep, ModelError, Weights};

/// Heads of one kind.
pub(super) struct HeadInput {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) norm: Option<Norm>,
    pub(super) rotary: Option<Arc<rotary::Table>>,
}

/// What is kept of a forward.
pub(super) struct KeptHeads {
    /// As attention reads them, `[tokens, heads, head_dim]`; cheap where they can be computed from
    /// what the norm read.
    ready: Option<Tensor>,
    /// What the norm read, `[tokens × heads, head_dim]`.
    raw: Option<(Tensor, Statistics)>,
}

impl HeadInput {
    /// From `projected`, which nobody else reads, to what attention reads; both `[tokens, heads,
    /// head_dim]`.
    pub(super) fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        projected: Tensor,
        keep: Keep,
    ) -> Result<(Tensor, KeptHeads), ModelError> {
        let Some(norm) = &self.norm else {
            let ready = match &self.rotary {
                Some(table) => rotary::apply_over(&projected, context.sequences, table)?,
                None => projected,
            };
            let kept = KeptHeads {
                ready: Some(ready.clone()),
                raw: None,
            };
            return Ok((ready, kept));
        };
        let raw = self.rows(&projected)?;
        let normed = norm.forward(weights, &raw)?;
        let ready = self.rotate(context, &normed.y)?;
        let kept = KeptHeads {
            ready: keep.cheap(ready.clone()),
            raw: Some((raw, normed.statistics)),
        };
        Ok((ready, kept))
    }

    /// Elements that a forward keeps of a token.
    pub(super) fn kept_per_token(&self, keep: Keep) -> usize {
        let width = self.heads * self.head_dim;
        match &self.norm {
            None => width,
            Some(norm) => width + self.heads * norm.kept_per_row(self.head_dim, keep),
        }
    }

    /// What the forward returned, as it was kept or computed again.
    pub(super) fn output(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        kept: &KeptHeads,
    ) -> Result<Tensor, ModelError> {
        match (&kept.ready, &self.norm, &kept.raw) {
            (Some(ready), _, _) => Ok(ready.clone()),
            (None, Some(norm), Some((raw, _))) => {
                self.rotate(context, &norm.forward(weights, raw)?.y)
            }
            _ => Err(ModelError::Saved {
                segment: "heads of an attention",
            }),
        }
    }

    /// The gradient of what was projected, from that of what attention read, `dy`, which nobody else reads;
    /// both `[tokens, heads, head_dim]`.
    pub(super) fn backward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        kept: &KeptHeads,
        dy: Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let (Some(norm), Some((raw, statistics))) = (&self.norm, &kept.raw) else {
            return Ok(match &self.rotary {
                Some(table) => rotary::apply_backward_over(&dy, context.sequences, table)?,
                None => dy,
            });
        };
        // Heads that lie one after the other, for the norm.
        let dy = match &self.rotary {
            Some(table) => rotary::apply_backward(&dy, context.sequences, table)?,
            None => dy.contiguous()?,
        };
        let inputs = NormBackward {
            dy: &self.rows(&dy)?,
            x: raw,
            statistics,
            residual: None,
        };
        let dx = norm.backward(weights, &inputs, gradients)?;
        Ok(dx.reshape(dy.shape())?)
    }

    /// A row a head; no copy.
    fn rows(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(x.reshape(((), self.head_dim))?)
    }

    fn rotate(&self, context: &Context<'_>, x: &Tensor) -> Result<Tensor, ModelError> {
        let heads = x.reshape((context.tokens(), self.heads, self.head_dim))?;
        match &self.rotary {
            Some(table) => Ok(rotary::apply(&heads, context.sequences, table)?),
            None => Ok(heads),
        }
    }
}
