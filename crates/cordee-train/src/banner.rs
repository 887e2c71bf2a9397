//! What is about to run, in the lines a person reads first.

use cordee_config::{ModelConfig, Recompute};
use cordee_data::Source;
use cordee_memory::DType;
use cordee_model::Model;
use cordee_ops::attention::cudnn::{self, Status};
use cordee_protocol::Banner;

use crate::{Compute, Run};

/// The lines of the banner.
pub(crate) fn banner(run: &Run<'_>, model: &Model, first_step: u64) -> Banner {
    let (plan, corpus) = (run.plan, run.corpus);
    let config = &plan.config;
    let shape = &config.model;
    let tied = if shape.tie_embeddings {
        ", tied embeddings"
    } else {
        ""
    };
    let tokens = plan.tokens_per_step * config.train.steps.0;
    let train_tokens: u64 = corpus
        .sources()
        .iter()
        .map(|source| source.train.tokens)
        .sum();
    let lines = [
        ("model", architecture(shape, corpus.vocab_size())),
        (
            "parameters",
            format!("{}{tied}", count(model.parameter_count() as u64)),
        ),
        (
            "data",
            format!(
                "{} tokens: {}",
                count(train_tokens),
                corpus
                    .sources()
                    .iter()
                    .map(contents)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        ),
        (
            "batch",
            format!(
                "{} sequences of {} = micro {} x accumulation {} x ranks {}",
                config.train.global_batch_size,
                config.data.seq_len,
                plan.micro_batch_size,
                plan.accumulation_steps,
                plan.world_size
            ),
        ),
        (
            "steps",
            format!(
                "{} of {} tokens: {} tokens, {:.2} epochs",
                config.train.steps.0,
                count(plan.tokens_per_step),
                count(tokens),
                epochs(run)
            ),
        ),
        (
            "optimizer",
            format!(
                "AdamW, lr {} after {} warm-up steps, weight decay {}, clip {}, seed {}",
                config.optimizer.lr,
                config.schedule.warmup_steps.0,
                config.optimizer.weight_decay,
                config.optimizer.clip_grad_norm,
                config.train.seed
            ),
        ),
        ("precision", precision(run.compute).to_owned()),
        ("recompute", recompute(config.train.recompute).to_owned()),
        ("ranks", ranks(run)),
        ("run", run.run_dir.display().to_string()),
        ("start", start(run, first_step)),
    ];
    let attention = attention(run).map(|text| ("attention", text));
    Banner {
        lines: lines
            .into_iter()
            .chain(attention)
            .map(|(label, text)| (label.to_owned(), text))
            .collect(),
        first_step,
        last_step: run.last_step,
    }
}

fn precision(compute: &Compute) -> &'static str {
    match (compute.numbers, compute.states) {
        (DType::Bf16, DType::Bf16) => {
            "bf16: weights, activations, moments, rounded stochastically; f32: gradients, norms, loss"
        }
        (DType::Bf16, _) => {
            "bf16: weights and activations; f32: master weights, gradients, moments, norms, loss"
        }
        _ => "f32: weights, activations, gradients, moments",
    }
}

/// Where the ranks compute, and how they meet.
fn ranks(run: &Run<'_>) -> String {
    let (ranks, config) = (run.plan.world_size, &run.plan.config);
    match run.compute.device.facts() {
        None => format!(
            "{ranks} on the CPU, {} each, {}",
            threads(config.parallel.threads.unwrap_or(1)),
            run.transport
        ),
        Some(gpu) => format!(
            "{ranks}, rank 0 on GPU {}: {}, {:.0} GiB, {} multiprocessors, {}",
            gpu.ordinal,
            gpu.name,
            gpu.memory as f64 / f64::from(1 << 30),
            gpu.multiprocessors,
            run.transport
        ),
    }
}

/// Whose attention a GPU computes with; there is one on the host.
fn attention(run: &Run<'_>) -> Option<String> {
    run.compute.device.facts()?;
    let head_dim = run.plan.config.model.head_dim();
    let own = match (run.compute.numbers, head_dim) {
        (DType::Bf16, 64 | 128) => "cordee's kernels on tensor cores",
        _ => "cordee's kernels on ordinary cores",
    };
    Some(match (cudnn::status(), run.compute.numbers) {
        (Status::Available { version, .. }, DType::Bf16) => {
            format!("cuDNN {version} for the calls that it takes, else {own}")
        }
        (Status::Available { .. }, _) => format!("{own}: cuDNN has none in f32"),
        (Status::Unavailable { reason, .. }, _) => format!("{own}: cuDNN: {reason}"),
    })
}

/// How often the whole run reads its data.
fn epochs(run: &Run<'_>) -> f64 {
    let config = &run.plan.config;
    let sources = run.corpus.sources().iter();
    let sequences: u64 = sources
        .map(|source| source.train.sequences(config.data.seq_len))
        .sum();
    config.train.steps.0 as f64 * config.train.global_batch_size as f64 / sequences as f64
}

/// What a source gives to learn.
fn contents(source: &Source) -> String {
    let tokens = count(source.train.tokens);
    match &source.train.packed {
        None => format!("{} {tokens}", source.name),
        Some(packed) => format!(
            "{} {tokens} in {} examples, of which {} are learned",
            source.name,
            source.train.documents,
            count(packed.learned)
        ),
    }
}

fn architecture(shape: &ModelConfig, tokens: usize) -> String {
    format!(
        "{}, {} layers of width {}, {} heads ({} kv), ffn {}, vocabulary {}",
        shape.family.name(),
        shape.layers,
        shape.dim,
        shape.heads,
        shape.kv_heads.unwrap_or(shape.heads),
        shape.ffn,
        shape.vocab_size.unwrap_or(tokens)
    )
}

fn recompute(setting: Recompute) -> &'static str {
    match setting {
        Recompute::None => "none: activations are kept",
        Recompute::Light => "light: outputs of norms and activations are computed again",
        Recompute::Full => "full: a block's forward runs again before its backward",
    }
}

fn threads(threads: usize) -> String {
    if threads == 1 {
        "1 thread".to_owned()
    } else {
        format!("{threads} threads")
    }
}

fn start(run: &Run<'_>, first_step: u64) -> String {
    match (run.resume, &run.plan.config.model.init_from) {
        (None, None) => "step 0, fresh weights".to_owned(),
        (None, Some(directory)) => format!("step 0, weights of {}", directory.display()),
        (Some(checkpoint), _) => format!(
            "resumed after step {first_step} from {}",
            checkpoint.display()
        ),
    }
}

/// `1234567` as `1.23 M`.
fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}
