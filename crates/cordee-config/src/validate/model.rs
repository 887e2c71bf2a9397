//! Whether the keys of `[model]` make sense together, and for the family they are given for.

use super::Problems;
use crate::schema::{
    DataConfig, Gelu, LARGEST_EXTENT, ModelConfig, ModelFamily, RopeScaling, RopeScalingKind,
};

impl Problems {
    pub(super) fn model(&mut self, model: &ModelConfig, data: &DataConfig) {
        let extents = [
            ("model.dim", Some(model.dim)),
            ("model.layers", Some(model.layers)),
            ("model.heads", Some(model.heads)),
            ("model.ffn", Some(model.ffn)),
            ("model.vocab_size", model.vocab_size),
        ];
        for (key, extent) in extents {
            if let Some(extent) = extent {
                self.at_least(key, extent, 1);
                self.at_most(key, extent, LARGEST_EXTENT);
            }
        }
        self.positive("model.rope_theta", model.rope_theta);
        self.positive("model.norm_eps", model.norm_eps);
        self.positive("model.init_std", model.init_std);
        self.heads(model);
        self.of_the_family(model);
        self.windows(model);
        self.rope(model);
        if let Some(scalar) = model.query_pre_attn_scalar {
            self.at_least("model.query_pre_attn_scalar", scalar, 1);
        }
        if let Some(positions) = model.max_positions
            && model.family == ModelFamily::Gpt2
            && positions < data.seq_len
        {
            let wrong = format!(
                "must be at least `data.seq_len` = {}, because positions are learned, found {positions}",
                data.seq_len
            );
            self.add_for(&["model.max_positions", "data.seq_len"], &wrong, None);
        }
    }

    fn heads(&mut self, model: &ModelConfig) {
        let heads = model.heads;
        match model.kv_heads {
            Some(0) => self.at_least("model.kv_heads", 0, 1),
            Some(kv_heads) if !heads.is_multiple_of(kv_heads) => {
                let wrong = format!("must divide `model.heads` = {heads}, found {kv_heads}");
                let hint = format!("{} divide it", divisors(heads));
                self.add_for(&["model.kv_heads", "model.heads"], &wrong, Some(hint));
            }
            _ => {}
        }
        if model.family == ModelFamily::Gpt2 {
            return self.gpt2_heads(model);
        }
        match model.head_dim {
            Some(0) => self.at_least("model.head_dim", 0, 1),
            Some(head_dim) if head_dim % 2 == 1 => {
                let wrong =
                    format!("must be even, because positions rotate pairs, found {head_dim}");
                self.add("model.head_dim", &wrong);
            }
            None if heads > 0 && !model.dim.is_multiple_of(heads) => {
                let wrong = format!(
                    "must be a multiple of `model.heads` = {heads}, found {}",
                    model.dim
                );
                let hint = "choose other numbers, or give `model.head_dim`".to_owned();
                self.add_for(&["model.dim", "model.heads"], &wrong, Some(hint));
            }
            None if heads > 0 && model.dim / heads % 2 == 1 => {
                let wrong = format!(
                    "divided by `model.heads` must be even, because positions rotate pairs, found \
                     {} / {heads} = {}",
                    model.dim,
                    model.dim / heads
                );
                let hint = "choose other numbers, or give `model.head_dim`".to_owned();
                self.add_for(&["model.dim", "model.heads"], &wrong, Some(hint));
            }
            _ => {}
        }
    }

    /// One projection makes queries, keys and values of it, all as wide as the model.
    fn gpt2_heads(&mut self, model: &ModelConfig) {
        let ModelConfig { dim, heads, .. } = *model;
        if heads == 0 {
            return;
        }
        if !dim.is_multiple_of(heads) {
            let wrong = format!("must be a multiple of `model.heads` = {heads}, found {dim}");
            return self.add_for(&["model.dim", "model.heads"], &wrong, None);
        }
        let expected = [
            ("model.kv_heads", model.kv_heads, heads),
            ("model.head_dim", model.head_dim, dim / heads),
        ];
        for (key, found, must) in expected {
            if let Some(found) = found
                && found != must
            {
                self.add(
                    key,
                    &format!("must be {must} in the family gpt2, found {found}"),
                );
            }
        }
    }

    /// Keys that mean nothing to the family.
    fn of_the_family(&mut self, model: &ModelConfig) {
        use ModelFamily::{Gemma3, Gpt2, Llama, Mistral, Qwen2, Qwen3};
        let given: [(&str, bool, &[ModelFamily]); 6] = [
            (
                "model.sliding_window",
                model.sliding_window.is_some(),
                &[Mistral, Qwen2, Qwen3, Gemma3],
            ),
            (
                "model.full_attention_layers",
                model.full_attention_layers.is_some(),
                &[Qwen2, Qwen3, Gemma3],
            ),
            (
                "model.rope_local_theta",
                model.rope_local_theta.is_some(),
                &[Gemma3],
            ),
            (
                "model.rope_scaling",
                model.rope_scaling.is_some(),
                &[Llama, Qwen2, Qwen3, Mistral, Gemma3],
            ),
            (
                "model.query_pre_attn_scalar",
                model.query_pre_attn_scalar.is_some(),
                &[Gemma3],
            ),
            ("model.gelu", model.gelu.is_some(), &[Gpt2, Gemma3]),
        ];
        for (key, is_given, families) in given {
            if is_given && !families.contains(&model.family) {
                let wrong = format!("means nothing in the family {}", model.family.name());
                let names: Vec<_> = families.iter().map(|family| family.name()).collect();
                let hint = format!("it belongs to {}", names.join(", "));
                self.add_for(&[key, "model.family"], &wrong, Some(hint));
            }
        }
        if model.family == Gemma3 && model.gelu == Some(Gelu::Exact) {
            self.add_for(
                &["model.gelu", "model.family"],
                "must be `tanh` in the family gemma3",
                None,
            );
        }
    }

    fn windows(&mut self, model: &ModelConfig) {
        if let Some(window) = model.sliding_window {
            self.at_least("model.sliding_window", window, 1);
        }
        let Some(full) = &model.full_attention_layers else {
            return;
        };
        let key = "model.full_attention_layers";
        if model.sliding_window.is_none() {
            self.add_for(&[key], "is given without `sliding_window`", None);
        }
        if let Some(layer) = full.iter().find(|layer| **layer >= model.layers) {
            let wrong = format!(
                "counts blocks from 0, and there are {}, found {layer}",
                model.layers
            );
            self.add_for(&[key, "model.layers"], &wrong, None);
        }
        if !full.is_sorted_by(|one, next| one < next) {
            self.add(key, "must rise");
        }
    }

    fn rope(&mut self, model: &ModelConfig) {
        if let Some(theta) = model.rope_local_theta {
            self.positive("model.rope_local_theta", theta);
            if model.sliding_window.is_none() {
                self.add(
                    "model.rope_local_theta",
                    "is given without `sliding_window`",
                );
            }
        }
        let Some(scaling) = &model.rope_scaling else {
            return;
        };
        self.positive("model.rope_scaling.factor", scaling.factor);
        match scaling.kind {
            RopeScalingKind::Linear => self.linear(scaling),
            RopeScalingKind::Llama3 if model.family == ModelFamily::Gemma3 => {
                let keys = ["model.rope_scaling.kind", "model.family"];
                self.add_for(&keys, "must be `linear` in the family gemma3", None);
            }
            RopeScalingKind::Llama3 => self.llama3(scaling),
        }
    }

    fn linear(&mut self, scaling: &RopeScaling) {
        let given = [
            ("low_freq_factor", scaling.low_freq_factor.is_some()),
            ("high_freq_factor", scaling.high_freq_factor.is_some()),
            (
                "original_max_positions",
                scaling.original_max_positions.is_some(),
            ),
        ];
        for (name, _) in given.iter().filter(|(_, given)| *given) {
            let key = format!("model.rope_scaling.{name}");
            self.add(&key, "means nothing where `kind` is `linear`");
        }
    }

    fn llama3(&mut self, scaling: &RopeScaling) {
        let section = "model.rope_scaling";
        let (Some(low), Some(high), Some(original)) = (
            scaling.low_freq_factor,
            scaling.high_freq_factor,
            scaling.original_max_positions,
        ) else {
            let wrong = "of `kind` `llama3` needs `low_freq_factor`, `high_freq_factor` and \
                         `original_max_positions`";
            return self.add(section, wrong);
        };
        self.positive("model.rope_scaling.low_freq_factor", low);
        self.at_least("model.rope_scaling.original_max_positions", original, 1);
        if !(high > low && high.is_finite()) {
            let wrong = format!("must be above `low_freq_factor` = {low:?}, found {high:?}");
            self.add("model.rope_scaling.high_freq_factor", &wrong);
        }
    }
}

/// The divisors of `number` that a model might use, as a list.
fn divisors(number: usize) -> String {
    let all = (1..=number.min(1024)).filter(|divisor| number.is_multiple_of(*divisor));
    all.map(|divisor| divisor.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
