//! Llama (Touvron et al., arXiv:2302.13971 and 2307.09288), and the families that differ from it in
//! a detail of their attention: Qwen2 (arXiv:2407.10671) has biases of queries, keys and values,
//! Qwen3 (arXiv:2505.09388) norms of queries and keys, Mistral (arXiv:2310.06825) a sliding window.

use std::sync::Arc;

use cordee_config::{ModelConfig, ModelFamily};

use super::{Rotary, pre_norm::PreNormBlock};
use crate::{
    layers::{AttentionKind, Gate, GatedFeedForward, Norm, SelfAttention, usual_scale},
    parameter::ParameterList,
};

/// One block: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
pub(super) fn block(
    layer: usize,
    config: &ModelConfig,
    rotary: &Rotary,
) -> PreNormBlock<GatedFeedForward> {
    let mut list = ParameterList::new(format!("model.layers.{layer}."));
    let kind = AttentionKind {
        has_bias: config.family == ModelFamily::Qwen2,
        has_head_norms: config.family == ModelFamily::Qwen3,
        rotary: Some(Arc::clone(&rotary.global)),
        scale: usual_scale(config.head_dim()),
        window: config.window(layer),
    };
    PreNormBlock {
        attention_norm: Norm::new(&mut list, "input_layernorm", config.dim, config),
        attention: SelfAttention::new(&mut list, config, &kind),
        ffn_norm: Norm::new(&mut list, "post_attention_layernorm", config.dim, config),
        feed_forward: GatedFeedForward::new(&mut list, config, Gate::Silu),
        parameters: list.finish(),
    }
}
