//! What a family's blocks are made of.

mod gemma3;
mod gpt2;
mod llama;
mod pre_norm;

use std::sync::Arc;

use cordee_config::{ModelConfig, ModelFamily, RopeScaling, RopeScalingKind};
use cordee_ops::rotary::{Scaling, Table};

use crate::{ModelError, Segment};

/// The blocks of the model that `config` describes, for sequences of at most `max_seq_len`.
pub(crate) fn blocks(
    config: &ModelConfig,
    max_seq_len: usize,
) -> Result<Vec<Box<dyn Segment>>, ModelError> {
    let rotary = Rotary::new(config, max_seq_len)?;
    let block = |layer| -> Box<dyn Segment> {
        match config.family {
            ModelFamily::Gpt2 => Box::new(gpt2::block(layer, config)),
            ModelFamily::Gemma3 => Box::new(gemma3::Gemma3Block::new(layer, config, &rotary)),
            ModelFamily::Llama | ModelFamily::Qwen2 | ModelFamily::Qwen3 | ModelFamily::Mistral => {
                Box::new(llama::block(layer, config, &rotary))
            }
        }
    };
    Ok((0..config.layers).map(block).collect())
}

/// Angles of rotary positions; computed at first use, so that those of nobody cost nothing.
struct Rotary {
    /// Of blocks that see all that came before.
    global: Arc<Table>,
    /// Of blocks with a sliding window, where the family makes a difference.
    local: Arc<Table>,
}

impl Rotary {
    fn new(config: &ModelConfig, max_seq_len: usize) -> Result<Self, ModelError> {
        let scaling = config.rope_scaling.as_ref().map_or(Scaling::None, scaling);
        // GPT-2 has no rotary positions, and may have heads of an odd width.
        let head_dim = match config.family {
            ModelFamily::Gpt2 => 2,
            _ => config.head_dim(),
        };
        let local_theta = config.rope_local_theta.unwrap_or(10_000.0);
        let table = |theta, scaling| Table::new(head_dim, max_seq_len, theta, scaling);
        Ok(Self {
            global: Arc::new(table(config.rope_theta, scaling)?),
            local: Arc::new(table(local_theta, Scaling::None)?),
        })
    }
}

fn scaling(config: &RopeScaling) -> Scaling {
    let factor = config.factor;
    match config.kind {
        RopeScalingKind::Linear => Scaling::Linear { factor },
        // A valid config gives all of them.
        RopeScalingKind::Llama3 => Scaling::Llama3 {
            factor,
            low_freq_factor: config.low_freq_factor.unwrap_or(1.0),
            high_freq_factor: config.high_freq_factor.unwrap_or(4.0),
            original_max_positions: config.original_max_positions.unwrap_or(0),
        },
    }
}
