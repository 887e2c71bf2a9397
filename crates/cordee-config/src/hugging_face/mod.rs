//! Hugging Face's `config.json` to a [`ModelConfig`] and back.
//!
//! Pure JSON: no weights, no tokenizer. Defaults of keys that a file leaves out are those of
//! transformers 5, family by family. What would make another model of it and is not known here is
//! refused by name, so that nothing is trained that only looks like what the file describes.

mod read;
mod refuse;
mod rope;
#[cfg(test)]
mod tests;
mod write;

use crate::schema::ModelFamily;

pub use read::from_json;
pub use write::{Facts, to_json};

/// Name of the file.
pub const CONFIG_FILE: &str = "config.json";

/// Why a `config.json` describes no model that can be trained here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HuggingFaceError {
    /// Not JSON, or no object.
    #[error("it is no JSON object: {0}")]
    Json(String),
    /// A key that every file of the family has is absent.
    #[error("`{0}` is missing")]
    Missing(String),
    /// A value of another type.
    #[error("`{key}` must be {expects}, found {found}")]
    Type {
        /// The key.
        key: String,
        /// What it must be.
        expects: &'static str,
        /// The value, as JSON.
        found: String,
    },
    /// Something that is not built here.
    #[error("`{key}` = {found} is not supported: {why}")]
    Unsupported {
        /// The key.
        key: String,
        /// The value, as JSON.
        found: String,
        /// What is.
        why: String,
    },
    /// An architecture that is not built here.
    #[error("`model_type` = {0} is not supported")]
    Family(String),
}

impl HuggingFaceError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported { .. } | Self::Family(_) => Some(format!(
                "supported are the families {}",
                ModelFamily::ALL
                    .map(|family| format!("{} (`{}`)", family.name(), model_type(family)))
                    .join(", ")
            )),
            _ => None,
        }
    }
}

/// What Hugging Face calls a family.
pub fn model_type(family: ModelFamily) -> &'static str {
    match family {
        ModelFamily::Gemma3 => "gemma3_text",
        other => other.name(),
    }
}

/// The keys of a `config.json` that a key of `[model]`, or of a section in it, may come from.
pub(crate) fn spellings(key: &str) -> &'static [&'static str] {
    match key {
        "family" => &["model_type"],
        "dim" => &["hidden_size", "n_embd"],
        "layers" => &["num_hidden_layers", "n_layer"],
        "heads" => &["num_attention_heads", "n_head"],
        "kv_heads" => &["num_key_value_heads", "num_attention_heads", "n_head"],
        "head_dim" => &["head_dim", "hidden_size", "n_embd"],
        "ffn" => &["intermediate_size", "n_inner", "n_embd"],
        "max_positions" => &["max_position_embeddings", "n_positions"],
        "rope_local_theta" => &["rope_local_base_freq", "rope_parameters"],
        "rope_scaling" => &["rope_scaling", "rope_parameters"],
        "kind" => &["rope_type", "type"],
        "original_max_positions" => &["original_max_position_embeddings"],
        "full_attention_layers" => &["layer_types", "sliding_window_pattern", "max_window_layers"],
        "gelu" => &["activation_function", "hidden_activation"],
        "norm_eps" => &["rms_norm_eps", "layer_norm_epsilon"],
        "tie_embeddings" => &["tie_word_embeddings"],
        "init_std" => &["initializer_range"],
        "vocab_size" => &["vocab_size"],
        "rope_theta" => &["rope_theta"],
        "sliding_window" => &["sliding_window"],
        "query_pre_attn_scalar" => &["query_pre_attn_scalar"],
        "factor" => &["factor"],
        "low_freq_factor" => &["low_freq_factor"],
        "high_freq_factor" => &["high_freq_factor"],
        _ => &[],
    }
}
