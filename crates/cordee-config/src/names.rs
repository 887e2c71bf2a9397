//! Names that were meant: the nearest one, the same one elsewhere, and what others call it.
//!
//! It must not know values, only names.

use crate::{
    describe::{Described, Key, Section, Shape},
    schema::Config,
};

/// What other frameworks call our keys. None of these names is a key of ours.
pub(crate) const FOREIGN_NAMES: &[(&str, &str)] = &[
    ("cutoff_len", "data.seq_len"),
    ("max_length", "data.seq_len"),
    ("max_seq_len", "data.seq_len"),
    ("max_seq_length", "data.seq_len"),
    ("sequence_len", "data.seq_len"),
    ("sequence_length", "data.seq_len"),
    ("datasets", "data.sources"),
    ("train_files", "data.sources"),
    ("dataset", "data.sources"),
    ("val_fraction", "data.validation_fraction"),
    ("val_set_size", "data.validation_fraction"),
    ("d_model", "model.dim"),
    ("hidden_size", "model.dim"),
    ("n_embd", "model.dim"),
    ("num_hidden_layers", "model.layers"),
    ("num_layers", "model.layers"),
    ("n_layer", "model.layers"),
    ("n_layers", "model.layers"),
    ("num_attention_heads", "model.heads"),
    ("n_head", "model.heads"),
    ("n_heads", "model.heads"),
    ("num_key_value_heads", "model.kv_heads"),
    ("n_kv_heads", "model.kv_heads"),
    ("intermediate_size", "model.ffn"),
    ("ffn_dim", "model.ffn"),
    ("ffn_hidden_size", "model.ffn"),
    ("model_type", "model.family"),
    ("rms_norm_eps", "model.norm_eps"),
    ("layer_norm_epsilon", "model.norm_eps"),
    ("max_position_embeddings", "model.max_positions"),
    ("n_positions", "model.max_positions"),
    ("rope_local_base_freq", "model.rope_local_theta"),
    ("layer_types", "model.full_attention_layers"),
    ("base_model", "model.init_from"),
    ("model_name_or_path", "model.init_from"),
    ("pretrained_model", "model.init_from"),
    ("initializer_range", "model.init_std"),
    ("tie_word_embeddings", "model.tie_embeddings"),
    ("batch_size", "train.global_batch_size"),
    ("train_batch_size", "train.global_batch_size"),
    ("micro_batch", "train.micro_batch_size"),
    ("micro_batch_per_gpu", "train.micro_batch_size"),
    ("per_device_train_batch_size", "train.micro_batch_size"),
    ("train_micro_batch_size_per_gpu", "train.micro_batch_size"),
    ("max_iters", "train.steps"),
    ("max_steps", "train.steps"),
    ("num_steps", "train.steps"),
    ("total_steps", "train.steps"),
    ("train_iters", "train.steps"),
    ("training_steps", "train.steps"),
    ("random_seed", "train.seed"),
    ("learning_rate", "optimizer.lr"),
    ("max_lr", "optimizer.lr"),
    ("optim", "optimizer.kind"),
    ("adam_eps", "optimizer.eps"),
    ("adam_epsilon", "optimizer.eps"),
    ("adam_beta1", "optimizer.betas"),
    ("adam_beta2", "optimizer.betas"),
    ("beta1", "optimizer.betas"),
    ("beta2", "optimizer.betas"),
    ("gradient_clipping", "optimizer.clip_grad_norm"),
    ("grad_clip", "optimizer.clip_grad_norm"),
    ("max_grad_norm", "optimizer.clip_grad_norm"),
    ("max_norm", "optimizer.clip_grad_norm"),
    ("lr_scheduler", "schedule.kind"),
    ("lr_scheduler_type", "schedule.kind"),
    ("scheduler", "schedule"),
    ("min_lr", "schedule.min_lr_ratio"),
    ("num_warmup_steps", "schedule.warmup_steps"),
    ("warmup_iters", "schedule.warmup_steps"),
    ("warmup_ratio", "schedule.warmup_steps"),
    ("nproc_per_node", "parallel.workers"),
    ("num_processes", "parallel.workers"),
    ("world_size", "parallel.workers"),
    ("num_threads", "parallel.threads"),
    ("zero_stage", "parallel.shard"),
    ("use_distributed_optimizer", "parallel.shard"),
    ("bucket_cap_mb", "parallel.bucket_size"),
    ("overlap_grad_reduce", "parallel.overlap"),
    ("overlap_comm", "parallel.overlap"),
    ("accelerator", "parallel.device"),
    ("use_cpu", "parallel.device"),
    ("bf16", "precision.compute"),
    ("dtype", "precision.compute"),
    ("fp16", "precision.compute"),
    ("mixed_precision", "precision.compute"),
    ("torch_dtype", "precision.compute"),
    ("state_dtype", "precision.states"),
    ("optimizer_dtype", "precision.states"),
    ("master_weights", "precision.states"),
    ("save_interval", "checkpoint.every"),
    ("save_steps", "checkpoint.every"),
    ("save_total_limit", "checkpoint.keep"),
    ("eval_interval", "eval.every"),
    ("eval_steps", "eval.every"),
    ("log_interval", "log.every"),
    ("logging_steps", "log.every"),
    ("training", "train"),
    ("parallelism", "parallel"),
    ("evaluation", "eval"),
    ("logging", "log"),
];

/// Foreign names for what is not a key here.
pub(crate) const FOREIGN_NOTIONS: &[(&str, &str)] = &[
    (
        "extends",
        "`extends` belongs at the top of a file, above the first section",
    ),
    (
        "epochs",
        "the length of a run is given in optimizer steps: `train.steps`",
    ),
    (
        "num_epochs",
        "the length of a run is given in optimizer steps: `train.steps`",
    ),
    (
        "num_train_epochs",
        "the length of a run is given in optimizer steps: `train.steps`",
    ),
    ("gradient_accumulation_steps", ACCUMULATION),
    ("gradient_accumulation", ACCUMULATION),
    ("accumulate_grad_batches", ACCUMULATION),
];

const ACCUMULATION: &str = "accumulation steps are derived from `train.global_batch_size`";

/// What to say about an unknown name.
#[derive(Debug)]
pub(crate) struct Advice {
    pub(crate) hint: String,
    /// The key of the same section that was probably meant.
    pub(crate) meant: Option<&'static str>,
}

/// Advice on a name that the section at the dotted path `path` does not have.
pub(crate) fn advise(path: &str, section: &'static Section, typed: &str) -> Advice {
    let typed = typed.to_lowercase().replace('-', "_");
    let foreign = FOREIGN_NAMES.iter().find(|(name, _)| *name == typed);
    let notion = FOREIGN_NOTIONS.iter().find(|(name, _)| *name == typed);
    let path = schema_path(path);
    if let Some((_, ours)) = foreign {
        did_you_mean(&path, &[(*ours).to_owned()], section)
    } else if let Some((_, hint)) = notion {
        Advice {
            hint: (*hint).to_owned(),
            meant: None,
        }
    } else if let elsewhere = keys_named(&typed)
        && !elsewhere.is_empty()
    {
        did_you_mean(&path, &elsewhere, section)
    } else if let Some(near) = nearest(&typed, section.keys.iter().map(|key| key.name)) {
        did_you_mean(&path, &[join(&path, near)], section)
    } else {
        Advice {
            hint: valid_names(&path, section),
            meant: None,
        }
    }
}

/// The candidate that a typing error leads to, if one is near enough.
pub(crate) fn nearest(
    typed: &str,
    candidates: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    // One slip for each three letters: `lt` is near `lr`, but `layers` is not near `steps`.
    let enough = (typed.chars().count() / 3).clamp(1, 3);
    let distance = |name: &str| strsim::damerau_levenshtein(typed, name);
    candidates
        .map(|name| (distance(name), name))
        .filter(|(distance, _)| *distance <= enough)
        .min()
        .map(|(_, name)| name)
}

/// "`a`, `b` or `c`"
pub(crate) fn alternatives<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}

/// A key in words: "`weight` in `[[data.sources]]`" for `data.sources.0.weight`.
pub(crate) fn key_in_words(path: &str) -> String {
    match path.rsplit_once('.') {
        Some((section, key)) => format!("`{key}` in {}", section_in_words(section)),
        None => section_in_words(path),
    }
}

/// A section as it is written: "`[[data.sources]]`" for `data.sources.0`.
pub(crate) fn section_in_words(path: &str) -> String {
    let in_schema = schema_path(path);
    if in_schema == path {
        format!("`[{path}]`")
    } else {
        format!("`[[{in_schema}]]`")
    }
}

/// The root of the schema.
pub(crate) fn root() -> &'static Section {
    let Shape::Section(root) = Config::SHAPE else {
        unreachable!("a config is a section")
    };
    root
}

/// A dotted path without the indices of list elements.
pub(crate) fn schema_path(path: &str) -> String {
    let names = path
        .split('.')
        .filter(|name| name.parse::<usize>().is_err());
    names.collect::<Vec<_>>().join(".")
}

/// `name` in the section at `path`, which is empty at the top.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Visits every key below `section` with its dotted path, in the order of the schema.
pub(crate) fn walk(
    section: &'static Section,
    path: &str,
    visit: &mut dyn FnMut(&str, &'static Key),
) {
    for key in section.keys {
        let path = join(path, key.name);
        visit(&path, key);
        if let Shape::Section(section) | Shape::Sections(section) = key.shape {
            walk(section, &path, visit);
        }
    }
}

/// The paths of all keys of that name.
fn keys_named(name: &str) -> Vec<String> {
    let mut paths = Vec::new();
    walk(root(), "", &mut |path, key| {
        if key.name == name {
            paths.push(path.to_owned());
        }
    });
    paths
}

fn did_you_mean(section_path: &str, paths: &[String], section: &'static Section) -> Advice {
    let key_here = |path: &String| {
        section
            .keys
            .iter()
            .find(|key| join(section_path, key.name) == *path)
    };
    let spell = |path: &String| match key_here(path) {
        _ if is_section(path) => format!("[{path}]"),
        Some(key) => key.name.to_owned(),
        None => path.clone(),
    };
    let spelled: Vec<_> = paths.iter().map(spell).collect();
    let hint = format!(
        "did you mean {}?",
        alternatives(spelled.iter().map(String::as_str))
    );
    Advice {
        hint,
        meant: paths.iter().find_map(key_here).map(|key| key.name),
    }
}

/// Whether a `[section]` has that path.
fn is_section(path: &str) -> bool {
    let mut found = false;
    walk(root(), "", &mut |other, key| {
        found |= other == path && matches!(key.shape, Shape::Section(_));
    });
    found
}

fn valid_names(path: &str, section: &Section) -> String {
    let names = section.keys.iter().map(|key| key.name);
    if path.is_empty() {
        let names: Vec<_> = names.map(|name| format!("`[{name}]`")).collect();
        format!("the sections are {}", names.join(", "))
    } else {
        let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
        format!("the keys are {}", names.join(", "))
    }
}
