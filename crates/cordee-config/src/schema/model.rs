//! `[model]`: what describes a decoder of any family.
//!
//! Keys that only some families have are optional, and absent where they do not apply.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::describe::{choice, section};

/// The most that a width or a number of blocks, heads or tokens of a model may be: far beyond any model, and
/// below what would only exhaust the memory before anybody could say why.
pub const LARGEST_EXTENT: usize = 1 << 20;

section! {
    /// `[model]`: a decoder, by its shape, or as a Hugging Face directory describes it (`init_from`).
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct ModelConfig {
        /// Architecture family.
        #[serde(default)]
        pub family: ModelFamily,
        /// A Hugging Face directory to start from. Its `config.json` gives the keys of this section,
        /// which then need not be written and may not say otherwise; its weights are the initial
        /// ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub init_from: Option<PathBuf>,
        /// Rows of the embedding table, where they are not as many as the tokenizer has tokens: the
        /// table of a published checkpoint is often larger.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub vocab_size: Option<usize>,
        /// Width of the residual stream.
        pub dim: usize,
        /// Number of blocks.
        pub layers: usize,
        /// Query heads.
        pub heads: usize,
        /// Key and value heads; as many as `heads` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub kv_heads: Option<usize>,
        /// Width of a head; `dim / heads` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub head_dim: Option<usize>,
        /// Width of the feed-forward layer.
        pub ffn: usize,
        /// Longest sequence, in tokens: rows of the table of positions of `gpt2`; for the others a
        /// mark in exported files. `data.seq_len` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_positions: Option<usize>,
        /// Base of the rotary frequencies; `gpt2` has none.
        #[serde(default = "rope_theta")]
        pub rope_theta: f64,
        /// Base of the rotary frequencies in blocks with a sliding window (`gemma3`); 10000 when
        /// absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub rope_local_theta: Option<f64>,
        /// How rotary frequencies are changed for longer contexts; not at all when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub rope_scaling: Option<RopeScaling>,
        /// Tokens, its own included, that a token sees in blocks with a sliding window (`mistral`,
        /// `qwen2`, `qwen3`, `gemma3`); every block sees all that came before when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub sliding_window: Option<usize>,
        /// Blocks, counted from 0, that see all that came before in spite of `sliding_window`
        /// (`qwen2`, `qwen3`, `gemma3`); none when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub full_attention_layers: Option<Vec<usize>>,
        /// Attention scores are divided by its square root (`gemma3`); by that of the width of a
        /// head when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub query_pre_attn_scalar: Option<usize>,
        /// How GELU is computed (`gpt2`, `gemma3`); `tanh` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub gelu: Option<Gelu>,
        /// Added to the mean square, or to the variance, in norms.
        #[serde(default = "norm_eps")]
        pub norm_eps: f64,
        /// Whether the head shares the embedding's weights.
        #[serde(default)]
        pub tie_embeddings: bool,
        /// Standard deviation of the initial weights; projections back into the residual stream
        /// start smaller by the square root of twice the number of blocks.
        #[serde(default = "init_std")]
        pub init_std: f64,
    }
}

section! {
    /// `[model.rope_scaling]`: rotary frequencies for contexts longer than a model began with.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct RopeScaling {
        /// The rule.
        pub kind: RopeScalingKind,
        /// By how much the frequencies are divided.
        pub factor: f64,
        /// Wavelengths above `original_max_positions` divided by it are scaled in full (`llama3`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub low_freq_factor: Option<f64>,
        /// Wavelengths below `original_max_positions` divided by it are left alone (`llama3`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub high_freq_factor: Option<f64>,
        /// Longest sequence before the change, in tokens (`llama3`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub original_max_positions: Option<usize>,
    }
}

choice! {
    /// Rules by which rotary frequencies are scaled.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub enum RopeScalingKind {
        /// All alike (Chen et al., arXiv:2306.15595). In `gemma3`, in blocks without a window.
        #[serde(rename = "linear")]
        Linear,
        /// Long wavelengths alone, with a smooth passage (Llama 3.1, arXiv:2407.21783).
        #[serde(rename = "llama3")]
        Llama3,
    }
}

choice! {
    /// Ways to compute GELU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub enum Gelu {
        /// Through the hyperbolic tangent, as GPT-2 was trained.
        #[serde(rename = "tanh")]
        Tanh,
        /// Through the error function.
        #[serde(rename = "exact")]
        Exact,
    }
}

choice! {
    /// Architecture families that can be trained.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum ModelFamily {
        /// Llama 2 and 3, SmolLM2: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
        #[default]
        #[serde(rename = "llama")]
        Llama,
        /// Qwen2 and Qwen2.5: as `llama`, with biases of queries, keys and values.
        #[serde(rename = "qwen2")]
        Qwen2,
        /// Qwen3: as `llama`, with norms of queries and keys.
        #[serde(rename = "qwen3")]
        Qwen3,
        /// Mistral: as `llama`, with a sliding window.
        #[serde(rename = "mistral")]
        Mistral,
        /// Gemma 3 (text): norms before and behind each layer and of queries and keys, GeGLU, a
        /// scaled embedding, blocks with and without a sliding window.
        #[serde(rename = "gemma3")]
        Gemma3,
        /// GPT-2: LayerNorm, biases, learned positions, GELU.
        #[serde(rename = "gpt2")]
        Gpt2,
    }
}

impl ModelConfig {
    /// A Llama of these sizes, with everything else at its default.
    pub fn llama(dim: usize, layers: usize, heads: usize, ffn: usize) -> Self {
        Self {
            family: ModelFamily::Llama,
            init_from: None,
            vocab_size: None,
            dim,
            layers,
            heads,
            kv_heads: None,
            head_dim: None,
            ffn,
            max_positions: None,
            rope_theta: rope_theta(),
            rope_local_theta: None,
            rope_scaling: None,
            sliding_window: None,
            full_attention_layers: None,
            query_pre_attn_scalar: None,
            gelu: None,
            norm_eps: norm_eps(),
            tie_embeddings: false,
            init_std: init_std(),
        }
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.dim / self.heads)
    }

    /// Tokens, its own included, that a token sees in block `layer`; all when absent.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let full = self.full_attention_layers.as_deref().unwrap_or_default();
        self.sliding_window.filter(|_| !full.contains(&layer))
    }
}

impl ModelFamily {
    /// Every family.
    pub const ALL: [Self; 6] = [
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Mistral,
        Self::Gemma3,
        Self::Gpt2,
    ];

    /// Its name in a config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Mistral => "mistral",
            Self::Gemma3 => "gemma3",
            Self::Gpt2 => "gpt2",
        }
    }
}

fn rope_theta() -> f64 {
    10_000.0
}

fn norm_eps() -> f64 {
    1e-5
}

fn init_std() -> f64 {
    0.02
}
