//! Gemma 3, text (arXiv:2503.19786): norms before and behind both layers, norms of queries and
//! keys, GeGLU; blocks with a sliding window have rotary frequencies of their own.

use std::sync::Arc;

use candle_core::Tensor;
use cordee_config::ModelConfig;
use cordee_ops::{attention, gelu::Approximation, residual};

use super::Rotary;
use crate::{
    Context, Gradients, Keep, ModelError, Parameter, Saved, Segment, Weights,
    layers::{
        AttentionKind, Ends, FeedForward, Gate, GatedFeedForward, KeptAttention, KeptNorm, Norm,
        NormBackward, SelfAttention, Statistics, usual_scale,
    },
    parameter::ParameterList,
};

const NAME: &str = "a Gemma 3 block";

/// One block. The fields are in the order of its parameters.
pub(super) struct Gemma3Block {
    attention_norm: Norm,
    attention: SelfAttention,
    /// Of what the attention adds to the residual stream.
    behind_attention: Norm,
    ffn_norm: Norm,
    feed_forward: GatedFeedForward,
    /// Of what the feed-forward layer adds.
    behind_ffn: Norm,
    parameters: Vec<Parameter>,
}

struct Kept {
    x: Tensor,
    attention_normed: KeptNorm,
    attention: KeptAttention,
    mixed: (Tensor, Statistics),
    hidden: Tensor,
    ffn_normed: KeptNorm,
    feed_forward: <GatedFeedForward as FeedForward>::Kept,
    added: (Tensor, Statistics),
}

impl Gemma3Block {
    pub(super) fn new(layer: usize, config: &ModelConfig, rotary: &Rotary) -> Self {
        let mut list = ParameterList::new(format!("model.layers.{layer}."));
        let norm = |list: &mut _, name| Norm::new(list, name, config.dim, config);
        let window = config.window(layer);
        let table = match window {
            Some(_) => &rotary.local,
            None => &rotary.global,
        };
        let scalar = config.query_pre_attn_scalar.unwrap_or(config.head_dim());
        let kind = AttentionKind {
            has_bias: false,
            has_head_norms: true,
            rotary: Some(Arc::clone(table)),
            scale: usual_scale(scalar),
            window,
        };
        let gate = Gate::Gelu(Approximation::Tanh);
        Self {
            attention_norm: norm(&mut list, "input_layernorm"),
            attention: SelfAttention::new(&mut list, config, &kind),
            behind_attention: norm(&mut list, "post_attention_layernorm"),
            ffn_norm: norm(&mut list, "pre_feedforward_layernorm"),
            feed_forward: GatedFeedForward::new(&mut list, config, gate),
            behind_ffn: norm(&mut list, "post_feedforward_layernorm"),
            parameters: list.finish(),
        }
    }
}

impl Segment for Gemma3Block {
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
        let (mixed, attention) =
            self.attention
                .forward(context, weights, &attention_normed.y, None, keep)?;
        let mixed_normed = self.behind_attention.forward(weights, &mixed)?;
        let (hidden, ffn_normed) = self
            .ffn_norm
            .forward_residual(weights, &x, &mixed_normed.y)?;
        let (added, feed_forward) =
            self.feed_forward
                .forward(weights, &ffn_normed.y, None, keep)?;
        let added_normed = self.behind_ffn.forward(weights, &added)?;
        let y = residual::forward(&hidden, &added_normed.y)?;
        let kept = Kept {
            x,
            attention_normed: attention_normed.kept(keep),
            attention,
            mixed: (mixed, mixed_normed.statistics),
            hidden,
            ffn_normed: ffn_normed.kept(keep),
            feed_forward,
            added: (added, added_normed.statistics),
        };
        Ok((y, Saved::new(kept)))
    }

    fn attention(&self) -> Option<attention::Layer> {
        Some(self.attention.layer())
    }

    fn kept_per_token(&self, keep: Keep) -> usize {
        // Gains of a norm are as wide as the residual stream.
        let dim = self.parameters[0].elements();
        // The input, the stream behind the attention, and what each layer adds before its norm.
        4 * dim
            + self.attention_norm.kept_per_row(dim, keep)
            + self.attention.kept_per_token(keep)
            + self.behind_attention.statistics_per_row()
            + self.ffn_norm.kept_per_row(dim, keep)
            + self.feed_forward.kept_per_token(keep)
            + self.behind_ffn.statistics_per_row()
    }

    fn backward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        saved: Saved,
        dy: Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let kept: Kept = saved.take(NAME)?;
        let norm = NormBackward {
            dy: &dy,
            x: &kept.added.0,
            statistics: &kept.added.1,
            residual: None,
        };
        let dadded = self.behind_ffn.backward(weights, &norm, gradients)?;
        let ffn_normed = self
            .ffn_norm
            .output(weights, &kept.hidden, &kept.ffn_normed)?;
        let dffn_normed = self.feed_forward.backward(
            weights,
            &ffn_normed,
            kept.feed_forward,
            &dadded,
            gradients,
        )?;
        let norm = NormBackward {
            dy: &dffn_normed,
            x: &kept.hidden,
            statistics: &kept.ffn_normed.statistics,
            residual: Some(&dy),
        };
        let dhidden = self.ffn_norm.backward(weights, &norm, gradients)?;

        let norm = NormBackward {
            dy: &dhidden,
            x: &kept.mixed.0,
            statistics: &kept.mixed.1,
            residual: None,
        };
        let dmixed = self.behind_attention.backward(weights, &norm, gradients)?;
        let normed = self
            .attention_norm
            .output(weights, &kept.x, &kept.attention_normed)?;
        let ends = Ends {
            x: &normed,
            dy: &dmixed,
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
