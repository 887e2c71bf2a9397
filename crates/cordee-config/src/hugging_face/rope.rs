//! Rotary positions in a `config.json`: the old spelling (`rope_theta` and `rope_scaling`), the new
//! one (`rope_parameters`), and the new one by kind of block (Gemma 3).

use super::{HuggingFaceError, read::Json};
use crate::schema::{ModelFamily, RopeScaling, RopeScalingKind};

/// What is known about rotary positions.
pub(super) struct Rope {
    pub(super) theta: f64,
    /// Of blocks with a window; Gemma 3 alone has another there.
    pub(super) local_theta: Option<f64>,
    pub(super) scaling: Option<RopeScaling>,
}

impl Rope {
    pub(super) fn read(json: Json<'_>, family: ModelFamily) -> Result<Self, HuggingFaceError> {
        let gemma = family == ModelFamily::Gemma3;
        let parameters = json.object("rope_parameters")?;
        // Nested by kind of block, or flat for all.
        let nested = |kind| parameters.map_or(Ok(None), |json| json.object(kind));
        let (global, local) = (nested("full_attention")?, nested("sliding_attention")?);
        let flat = match global.or(parameters) {
            Some(flat) => Some(flat),
            None => json.object("rope_scaling")?,
        };
        if let Some(flat) = flat {
            refuse_partial(flat)?;
        }
        let theta_of =
            |json: Option<Json<'_>>| json.map_or(Ok(None), |json| json.number("rope_theta"));
        let theta = match theta_of(flat)? {
            Some(theta) => theta,
            None => json
                .number("rope_theta")?
                .unwrap_or(if gemma { 1e6 } else { 1e4 }),
        };
        let local_theta = match theta_of(local)? {
            Some(theta) => Some(theta),
            None => json.number("rope_local_base_freq")?,
        };
        if let Some(local) = local
            && scaling(local)?.is_some()
        {
            return Err(HuggingFaceError::Unsupported {
                key: "rope_parameters".to_owned(),
                found: "a scaled `sliding_attention`".to_owned(),
                why: "blocks with a window have plain rotary frequencies".to_owned(),
            });
        }
        let scaling = flat.map_or(Ok(None), scaling)?;
        if let Some(scaling) = &scaling
            && gemma
            && scaling.kind != RopeScalingKind::Linear
        {
            return Err(HuggingFaceError::Unsupported {
                key: "rope_type".to_owned(),
                found: "\"llama3\"".to_owned(),
                why: "this family has `default` and `linear`".to_owned(),
            });
        }
        Ok(Self {
            theta,
            local_theta: gemma.then(|| local_theta.unwrap_or(1e4)),
            scaling,
        })
    }
}

fn refuse_partial(json: Json<'_>) -> Result<(), HuggingFaceError> {
    match json.number("partial_rotary_factor")? {
        None => Ok(()),
        Some(factor) if factor.total_cmp(&1.0).is_eq() => Ok(()),
        Some(factor) => Err(HuggingFaceError::Unsupported {
            key: "partial_rotary_factor".to_owned(),
            found: factor.to_string(),
            why: "a head is rotated as a whole".to_owned(),
        }),
    }
}

fn scaling(json: Json<'_>) -> Result<Option<RopeScaling>, HuggingFaceError> {
    let kind = match json.word("rope_type")? {
        Some(kind) => Some(kind),
        None => json.word("type")?,
    };
    let needed = |key: &str| {
        json.number(key)?
            .ok_or_else(|| HuggingFaceError::Missing(key.to_owned()))
    };
    match kind {
        None | Some("default") => Ok(None),
        Some("linear") => Ok(Some(RopeScaling {
            kind: RopeScalingKind::Linear,
            factor: needed("factor")?,
            low_freq_factor: None,
            high_freq_factor: None,
            original_max_positions: None,
        })),
        Some("llama3") => Ok(Some(RopeScaling {
            kind: RopeScalingKind::Llama3,
            factor: needed("factor")?,
            low_freq_factor: Some(needed("low_freq_factor")?),
            high_freq_factor: Some(needed("high_freq_factor")?),
            original_max_positions: Some(json.needed_size("original_max_position_embeddings")?),
        })),
        Some(other) => Err(HuggingFaceError::Unsupported {
            key: "rope_type".to_owned(),
            found: format!("{other:?}"),
            why: "rotary frequencies are `default`, `linear` or `llama3`".to_owned(),
        }),
    }
}
