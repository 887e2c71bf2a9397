//! The block of most decoders: a norm before the attention, a norm before the feed-forward layer,
//! and both added to the residual stream.

use candle_core::Tensor;
use cordee_ops::attention;

use crate::{
    Context, Gradients, Keep, ModelError, Parameter, Saved, Segment, Weights,
    layers::{Ends, FeedForward, KeptAttention, KeptNorm, Norm, NormBackward, SelfAttention},
};

const NAME: &str = "a block";

/// One block. The fields are in the order of its parameters.
pub(super) struct PreNormBlock<F> {
    pub(super) attention_norm: Norm,
    pub(super) attention: SelfAttention,
    pub(super) ffn_norm: Norm,
    pub(super) feed_forward: F,
    pub(super) parameters: Vec<Parameter>,
}

struct Kept<F> {
    x: Tensor,
    attention_normed: KeptNorm,
    attention: KeptAttention,
    hidden: Tensor,
    ffn_normed: KeptNorm,
    feed_forward: F,
}

impl<F: FeedForward> Segment for PreNormBlock<F> {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: Tensor,
        keep: Keep,
    ) -> Result<(Tensor, Saved), ModelError> {
        let attention_normed = self.attention_norm.forward(weights, &x)?;
        let (hidden, attention) =
            self.attention
                .forward(context, weights, &attention_normed.y, Some(&x), keep)?;
        let ffn_normed = self.ffn_norm.forward(weights, &hidden)?;
        let (y, feed_forward) =
            self.feed_forward
                .forward(weights, &ffn_normed.y, Some(&hidden), keep)?;
        let kept = Kept {
            x,
            attention_normed: attention_normed.kept(keep),
            attention,
            hidden,
            ffn_normed: ffn_normed.kept(keep),
            feed_forward,
        };
        Ok((y, Saved::new(kept)))
    }

    fn attention(&self) -> Option<attention::Layer> {
        Some(self.attention.layer())
    }

    fn kept_per_token(&self, keep: Keep) -> usize {
        // Gains of a norm are as wide as the residual stream.
        let dim = self.parameters[0].elements();
        // The input, and the stream behind the attention.
        2 * dim
            + self.attention_norm.kept_per_row(dim, keep)
            + self.attention.kept_per_token(keep)
            + self.ffn_norm.kept_per_row(dim, keep)
            + self.feed_forward.kept_per_token(keep)
    }

    fn backward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        saved: Saved,
        dy: Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let kept: Kept<F::Kept> = saved.take(NAME)?;
        let ffn_normed = self
            .ffn_norm
            .output(weights, &kept.hidden, &kept.ffn_normed)?;
        let dffn_normed =
            self.feed_forward
                .backward(weights, &ffn_normed, kept.feed_forward, &dy, gradients)?;
        let norm = NormBackward {
            dy: &dffn_normed,
            x: &kept.hidden,
            statistics: &kept.ffn_normed.statistics,
            residual: Some(&dy),
        };
        let dhidden = self.ffn_norm.backward(weights, &norm, gradients)?;

        let normed = self
            .attention_norm
            .output(weights, &kept.x, &kept.attention_normed)?;
        let ends = Ends {
            x: &normed,
            dy: &dhidden,
        };
        let dnormed = self
            .attention
            .backward(context, weights, kept.attention, ends, gradients)?;
        let norm = NormBackward {
            dy: &dnormed,
            x: &kept.x,
            statistics: &kept.attention_normed.statistics,
            residual: Some(&dhidden),
        };
        self.attention_norm.backward(weights, &norm, gradients)
    }
}
