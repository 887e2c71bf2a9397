//! `config.json` to [`ModelConfig`].

use serde_json::{Map, Value};

use super::{HuggingFaceError, refuse::refuse, rope::Rope};
use crate::schema::{Gelu, LARGEST_EXTENT, ModelConfig, ModelFamily};

type Result<T> = std::result::Result<T, HuggingFaceError>;

/// The model that the text of a `config.json` describes. Everything but `init_from` is given.
pub fn from_json(text: &str) -> Result<ModelConfig> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| HuggingFaceError::Json(error.to_string()))?;
    let Value::Object(map) = value else {
        return Err(HuggingFaceError::Json("it is another value".to_owned()));
    };
    let json = Json(&map);
    let family = family(json)?;
    refuse(json, family)?;
    match family {
        ModelFamily::Gpt2 => gpt2(json),
        _ => decoder(json, family),
    }
}

fn family(json: Json<'_>) -> Result<ModelFamily> {
    let name = json.word("model_type")?;
    let name = name.ok_or_else(|| HuggingFaceError::Missing("model_type".to_owned()))?;
    ModelFamily::ALL
        .into_iter()
        .find(|family| super::model_type(*family) == name)
        .ok_or_else(|| HuggingFaceError::Family(format!("{name:?}")))
}

fn gpt2(json: Json<'_>) -> Result<ModelConfig> {
    let dim = json.needed_extent("n_embd")?;
    let heads = json.needed_extent("n_head")?;
    let ffn = json.extent("n_inner")?.unwrap_or(4 * dim);
    let gelu = match json.word("activation_function")?.unwrap_or("gelu_new") {
        "gelu" => Gelu::Exact,
        _ => Gelu::Tanh,
    };
    Ok(ModelConfig {
        family: ModelFamily::Gpt2,
        vocab_size: Some(json.needed_extent("vocab_size")?),
        kv_heads: Some(heads),
        head_dim: Some(dim.checked_div(heads).unwrap_or(0)),
        max_positions: Some(json.size("n_positions")?.unwrap_or(1024)),
        gelu: Some(gelu),
        norm_eps: json.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        tie_embeddings: json.truth("tie_word_embeddings")?.unwrap_or(true),
        init_std: json.number("initializer_range")?.unwrap_or(0.02),
        ..ModelConfig::llama(dim, json.needed_extent("n_layer")?, heads, ffn)
    })
}

/// The families whose keys go by Llama's names.
fn decoder(json: Json<'_>, family: ModelFamily) -> Result<ModelConfig> {
    let dim = json.needed_extent("hidden_size")?;
    let layers = json.needed_extent("num_hidden_layers")?;
    let heads = json.needed_extent("num_attention_heads")?;
    let ffn = json.needed_extent("intermediate_size")?;
    let gemma = family == ModelFamily::Gemma3;
    let head_dim = match (json.extent("head_dim")?, family) {
        (Some(size), _) => size,
        (None, ModelFamily::Qwen3) => 128,
        (None, ModelFamily::Gemma3) => 256,
        (None, _) => dim.checked_div(heads).unwrap_or(0),
    };
    let rope = Rope::read(json, family)?;
    let windows = Windows::read(json, family, layers)?;
    let query_pre_attn_scalar = match json.size("query_pre_attn_scalar")? {
        None if gemma => Some(256),
        given => given.filter(|_| gemma),
    };
    Ok(ModelConfig {
        family,
        vocab_size: Some(json.needed_extent("vocab_size")?),
        kv_heads: Some(json.extent("num_key_value_heads")?.unwrap_or(heads)),
        head_dim: Some(head_dim),
        max_positions: Some(json.needed_size("max_position_embeddings")?),
        rope_theta: rope.theta,
        // A model without a window has no use for it.
        rope_local_theta: rope.local_theta.filter(|_| windows.size.is_some()),
        rope_scaling: rope.scaling,
        sliding_window: windows.size,
        full_attention_layers: windows.full,
        query_pre_attn_scalar,
        gelu: gemma.then_some(Gelu::Tanh),
        norm_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
        tie_embeddings: json.truth("tie_word_embeddings")?.unwrap_or(gemma),
        init_std: json.number("initializer_range")?.unwrap_or(0.02),
        ..ModelConfig::llama(dim, layers, heads, ffn)
    })
}

/// Which blocks see a window.
struct Windows {
    size: Option<usize>,
    full: Option<Vec<usize>>,
}

impl Windows {
    const NONE: Self = Self {
        size: None,
        full: None,
    };

    fn read(json: Json<'_>, family: ModelFamily, layers: usize) -> Result<Self> {
        let size = match (family, json.0.get("sliding_window")) {
            (ModelFamily::Llama | ModelFamily::Gpt2, _) => None,
            // Left out, not null.
            (_, None) => Some(4096),
            _ => json.size("sliding_window")?,
        };
        let used = match family {
            ModelFamily::Qwen2 | ModelFamily::Qwen3 => {
                json.truth("use_sliding_window")?.unwrap_or(false)
            }
            _ => true,
        };
        let Some(size) = size.filter(|_| used) else {
            return Ok(Self::NONE);
        };
        let full = match json.words("layer_types")? {
            _ if family == ModelFamily::Mistral => Vec::new(),
            Some(types) => Self::by_types(&types, layers)?,
            None => Self::by_rule(json, family, layers)?,
        };
        if full.len() == layers {
            return Ok(Self::NONE);
        }
        Ok(Self {
            size: Some(size),
            full: (!full.is_empty()).then_some(full),
        })
    }

    /// Each block's kind is spelled out.
    fn by_types(types: &[&str], layers: usize) -> Result<Vec<usize>> {
        if types.len() != layers {
            return Err(HuggingFaceError::Unsupported {
                key: "layer_types".to_owned(),
                found: format!("{} types", types.len()),
                why: format!("there are {layers} blocks"),
            });
        }
        let unknown = types
            .iter()
            .find(|kind| !["full_attention", "sliding_attention"].contains(kind));
        if let Some(kind) = unknown {
            return Err(HuggingFaceError::Unsupported {
                key: "layer_types".to_owned(),
                found: format!("{kind:?}"),
                why: "a block has `full_attention` or `sliding_attention`".to_owned(),
            });
        }
        Ok((0..layers)
            .filter(|&layer| types[layer] == "full_attention")
            .collect())
    }

    /// Gemma: every so many blocks one sees all. Qwen: the first so many do.
    fn by_rule(json: Json<'_>, family: ModelFamily, layers: usize) -> Result<Vec<usize>> {
        if family == ModelFamily::Gemma3 {
            let pattern = match json.size("sliding_window_pattern")? {
                None => json.size("_sliding_window_pattern")?.unwrap_or(6),
                given => given.unwrap_or(6),
            };
            return Ok((0..layers)
                .filter(|layer| (layer + 1).is_multiple_of(pattern))
                .collect());
        }
        let first = json.size("max_window_layers")?.unwrap_or(28);
        Ok((0..layers.min(first)).collect())
    }
}

/// The keys of a JSON object, by type; `null` is as good as absent.
#[derive(Clone, Copy)]
pub(super) struct Json<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Json<'a> {
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn size(self, key: &str) -> Result<Option<usize>> {
        // Some files write sizes as 32.0.
        let whole = |value: &Value| {
            let float = || {
                let float = value.as_f64()?;
                (float >= 0.0 && float.fract() == 0.0 && float < 9e15).then_some(float as u64)
            };
            value.as_u64().or_else(float).map(|size| size as usize)
        };
        self.typed(key, "a non-negative integer", whole)
    }

    /// A size of the architecture. Far beyond any model lies what would only exhaust the memory.
    pub(super) fn extent(self, key: &str) -> Result<Option<usize>> {
        match self.size(key)? {
            Some(size) if !(1..=LARGEST_EXTENT).contains(&size) => Err(HuggingFaceError::Type {
                key: key.to_owned(),
                expects: "from 1 to 1048576",
                found: size.to_string(),
            }),
            size => Ok(size),
        }
    }

    pub(super) fn needed_extent(self, key: &str) -> Result<usize> {
        self.extent(key)?
            .ok_or_else(|| HuggingFaceError::Missing(key.to_owned()))
    }

    pub(super) fn needed_size(self, key: &str) -> Result<usize> {
        self.size(key)?
            .ok_or_else(|| HuggingFaceError::Missing(key.to_owned()))
    }

    pub(super) fn number(self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn truth(self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn word(self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn object(self, key: &str) -> Result<Option<Json<'a>>> {
        self.typed(key, "an object", |value| value.as_object().map(Json))
    }

    fn words(self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(key, "an array of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    fn typed<T>(
        self,
        key: &str,
        expects: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| HuggingFaceError::Type {
            key: key.to_owned(),
            expects,
            found: value.to_string(),
        })
    }
}
