//! GPT-2 (Radford et al., 2019): LayerNorm, biases everywhere, GELU; positions are learned, in the
//! embedding.

use cordee_config::{Gelu, ModelConfig};
use cordee_ops::gelu::Approximation;

use super::pre_norm::PreNormBlock;
use crate::{
    layers::{Norm, PlainFeedForward, SelfAttention},
    parameter::ParameterList,
};

/// One block.
pub(super) fn block(layer: usize, config: &ModelConfig) -> PreNormBlock<PlainFeedForward> {
    let mut list = ParameterList::new(format!("transformer.h.{layer}."));
    let approximation = match config.gelu {
        Some(Gelu::Exact) => Approximation::Exact,
        Some(Gelu::Tanh) | None => Approximation::Tanh,
    };
    PreNormBlock {
        attention_norm: Norm::new(&mut list, "ln_1", config.dim, config),
        attention: SelfAttention::fused(&mut list, config),
        ffn_norm: Norm::new(&mut list, "ln_2", config.dim, config),
        feed_forward: PlainFeedForward::new(&mut list, config, approximation),
        parameters: list.finish(),
    }
}
