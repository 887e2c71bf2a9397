//! [`ModelConfig`] to `config.json`.
//!
//! In the spelling that transformers 4 and 5 and other readers understand: `rope_theta` and
//! `rope_scaling`, `torch_dtype`.

use serde_json::{Map, Value, json};

use super::model_type;
use crate::schema::{Gelu, ModelConfig, ModelFamily, RopeScaling, RopeScalingKind};

/// What a `config.json` says that a [`ModelConfig`] need not.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest sequence, in tokens.
    pub max_positions: usize,
    /// Type of the weights, such as `bfloat16`.
    pub torch_dtype: &'a str,
    /// The token that ends a text.
    pub eos_token_id: Option<u32>,
}

/// The text of a `config.json` that describes `model`.
pub fn to_json(model: &ModelConfig, facts: &Facts<'_>) -> String {
    let common = json!({
        "model_type": model_type(model.family),
        "architectures": [architecture(model.family)],
        "vocab_size": facts.vocab_size,
        "torch_dtype": facts.torch_dtype,
        "bos_token_id": null,
        "eos_token_id": facts.eos_token_id,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    });
    let own = match model.family {
        ModelFamily::Gpt2 => gpt2(model, facts),
        _ => decoder(model, facts),
    };
    let mut map = object(common);
    map.extend(object(own));
    let text = serde_json::to_string_pretty(&map).expect("numbers and words are JSON");
    format!("{text}\n")
}

fn architecture(family: ModelFamily) -> &'static str {
    match family {
        ModelFamily::Llama => "LlamaForCausalLM",
        ModelFamily::Qwen2 => "Qwen2ForCausalLM",
        ModelFamily::Qwen3 => "Qwen3ForCausalLM",
        ModelFamily::Mistral => "MistralForCausalLM",
        ModelFamily::Gemma3 => "Gemma3ForCausalLM",
        ModelFamily::Gpt2 => "GPT2LMHeadModel",
    }
}

fn gpt2(model: &ModelConfig, facts: &Facts<'_>) -> Value {
    json!({
        "n_embd": model.dim,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": model.ffn,
        "n_positions": model.max_positions.unwrap_or(facts.max_positions),
        "layer_norm_epsilon": model.norm_eps,
        "activation_function": match model.gelu {
            Some(Gelu::Exact) => "gelu",
            _ => "gelu_new",
        },
        // Its training knew no dropout.
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
    })
}

fn decoder(model: &ModelConfig, facts: &Facts<'_>) -> Value {
    let mut map = object(json!({
        "hidden_size": model.dim,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads(),
        "head_dim": model.head_dim(),
        "intermediate_size": model.ffn,
        "max_position_embeddings": model.max_positions.unwrap_or(facts.max_positions),
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": model.rope_scaling.as_ref().map(rope_scaling),
    }));
    let layer_types: Vec<_> = (0..model.layers)
        .map(|layer| match model.window(layer) {
            Some(_) => "sliding_attention",
            None => "full_attention",
        })
        .collect();
    let own = match model.family {
        ModelFamily::Llama => json!({
            "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
        }),
        ModelFamily::Mistral => json!({
            "hidden_act": "silu", "sliding_window": model.sliding_window,
        }),
        ModelFamily::Gemma3 => json!({
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": false,
            "query_pre_attn_scalar": model.query_pre_attn_scalar.unwrap_or(model.head_dim()),
            "rope_local_base_freq": model.rope_local_theta.unwrap_or(10_000.0),
            "sliding_window": model.sliding_window,
            "layer_types": layer_types,
        }),
        _ => json!({
            "hidden_act": "silu",
            "sliding_window": model.sliding_window,
            "use_sliding_window": model.sliding_window.is_some(),
            "max_window_layers": layer_types.iter().filter(|kind| **kind == "full_attention").count(),
            "layer_types": layer_types,
        }),
    };
    map.extend(object(own));
    Value::Object(map)
}

fn rope_scaling(scaling: &RopeScaling) -> Value {
    match scaling.kind {
        RopeScalingKind::Linear => json!({"rope_type": "linear", "factor": scaling.factor}),
        RopeScalingKind::Llama3 => json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
