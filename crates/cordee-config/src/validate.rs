//! Whether values make sense, alone and together, before anything starts.
//!
//! It must not know where values come from: a problem names keys, and the loader finds their origin.

mod model;

use std::{collections::HashSet, fmt::Display};

use crate::{
    names::key_in_words,
    plan::Machine,
    schema::{
        ComputePrecision, Config, DataConfig, DeviceKind, OptimizerConfig, PrecisionConfig,
        ScheduleConfig, SourceConfig, SourceFormat, StatePrecision,
    },
    units::ByteSize,
};

/// A config that cannot be run.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Dotted paths of the keys to blame, the likeliest first.
    pub(crate) keys: Vec<String>,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// Bytes and the end of text: the smallest byte-level vocabulary.
const SMALLEST_VOCABULARY: usize = 257;
const SMALLEST_PIECE: ByteSize = ByteSize(4 << 10);
const LARGEST_PIECE: ByteSize = ByteSize(1 << 30);

/// What is wrong whatever the number of workers.
pub(crate) fn validate(config: &Config) -> Vec<Problem> {
    let mut problems = Problems::default();
    problems.model(&config.model, &config.data);
    problems.data(&config.data);
    problems.at_least("train.steps", config.train.steps.0, 1);
    problems.at_least("train.global_batch_size", config.train.global_batch_size, 1);
    problems.at_least("train.micro_batch_size", config.train.micro_batch_size, 1);
    problems.optimizer(&config.optimizer);
    problems.precision(config.precision);
    problems.schedule(&config.schedule, config.train.steps.0);
    if let Some(workers) = config.parallel.workers {
        problems.at_least("parallel.workers", workers, 1);
    }
    if let Some(threads) = config.parallel.threads {
        problems.at_least("parallel.threads", threads, 1);
    }
    if config.parallel.bucket_size.0 == 0 {
        problems.add("parallel.bucket_size", "must be at least 1 byte");
    }
    for (key, time) in [
        ("parallel.timeout", config.parallel.timeout),
        ("launch.restart_window", config.launch.restart_window),
        ("launch.step_timeout", config.launch.step_timeout),
        ("launch.phase_timeout", config.launch.phase_timeout),
    ] {
        if time.0.is_zero() {
            problems.add(key, "must be longer than 0s");
        }
    }
    let piece = config.checkpoint.piece_size;
    if !(SMALLEST_PIECE..=LARGEST_PIECE).contains(&piece) {
        let wrong = format!("must be between {SMALLEST_PIECE} and {LARGEST_PIECE}, found {piece}");
        problems.add("checkpoint.piece_size", &wrong);
    }
    problems.at_least("log.every", config.log.every.0, 1);
    problems.0
}

/// What is wrong with the batch sizes over the workers of `machine`, and with its device.
pub(crate) fn validate_plan(config: &Config, machine: Machine) -> Vec<Problem> {
    let mut problems = Problems::default();
    let workers = machine.workers;
    if (machine.device, config.precision.compute) == (DeviceKind::Cpu, ComputePrecision::Bf16) {
        let hint = "set precision.compute = \"f32\"; where there is a GPU, a build with CUDA takes \
                    parallel.device = \"cuda\"";
        problems.add_for(
            &["precision.compute", "parallel.device"],
            "can be \"bf16\" on GPUs only, and this run computes on the CPU",
            Some(hint.to_owned()),
        );
    }
    if workers == 0 {
        problems.add("parallel.workers", "must be at least 1, found 0");
        return problems.0;
    }
    let train = &config.train;
    let keys = [
        "train.global_batch_size",
        "train.micro_batch_size",
        "parallel.workers",
    ];
    let global = train.global_batch_size;
    let Some(at_once) = train.micro_batch_size.checked_mul(workers) else {
        problems.add_for(
            &keys[1..],
            "times the workers is more than a machine word holds",
            None,
        );
        return problems.0;
    };
    if !global.is_multiple_of(at_once) {
        let wrong = format!(
            "must be a multiple of {at_once}, which is `train.micro_batch_size` = {} times {workers} \
             {}, found {global}",
            train.micro_batch_size,
            if workers == 1 { "worker" } else { "workers" },
        );
        let below = global / at_once * at_once;
        let nearby: Vec<_> = [Some(below), below.checked_add(at_once)]
            .into_iter()
            .flatten()
            .filter(|value| *value > 0)
            .map(|value| value.to_string())
            .collect();
        let hint = match nearby.as_slice() {
            [only] => format!("the smallest that works is {only}"),
            _ => format!("the nearest that work are {}", nearby.join(" and ")),
        };
        problems.add_for(&keys, &wrong, Some(hint));
    }
    let tokens = (global as u64).checked_mul(config.data.seq_len as u64);
    if tokens
        .and_then(|tokens| tokens.checked_mul(train.steps.0))
        .is_none()
    {
        let wrong = "times `train.global_batch_size` times `data.seq_len` is more tokens than 64 \
                     bits can count";
        problems.add_for(&["train.steps", keys[0], "data.seq_len"], wrong, None);
    }
    problems.0
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn data(&mut self, data: &DataConfig) {
        self.at_least("data.seq_len", data.seq_len, 2);
        self.at_least("data.vocab_size", data.vocab_size, SMALLEST_VOCABULARY);
        let fraction = data.validation_fraction;
        if !(fraction > 0.0 && fraction < 1.0) {
            let wrong = format!("must be above 0 and below 1, found {fraction:?}");
            self.add("data.validation_fraction", &wrong);
        }
        if data.sources.is_empty() {
            self.add("data.sources", "must have at least one element");
        }
        let mut names = HashSet::new();
        let weighted = data.sources.iter().any(|source| source.weight.is_some());
        for (index, source) in data.sources.iter().enumerate() {
            let path = format!("data.sources.{index}");
            let name = format!("{path}.name");
            if source.name.is_empty() {
                self.add(&name, "must not be empty");
            } else if !names.insert(&source.name) {
                let wrong = format!(
                    "must be unique, but another source is called `{}`",
                    source.name
                );
                self.add(&name, &wrong);
            }
            match source.weight {
                Some(weight) => self.positive(&format!("{path}.weight"), weight),
                None if weighted => {
                    let wrong = format!(
                        "is missing for `{}` while other sources have it",
                        source.name
                    );
                    let hint = "give a weight to all sources or to none".to_owned();
                    self.add_for(&[&format!("{path}.weight"), &path], &wrong, Some(hint));
                }
                None => {}
            }
            if source.document_separator.as_deref() == Some("") {
                self.add(&format!("{path}.document_separator"), "must not be empty");
            }
            self.format(&path, source);
        }
    }

    /// Keys of one format in a source of the other, and keys of examples that contradict each other.
    fn format(&mut self, path: &str, source: &SourceConfig) {
        let separator = ("document_separator", source.document_separator.is_some());
        let of_examples = [
            ("prompt_key", source.prompt_key.is_some()),
            ("completion_key", source.completion_key.is_some()),
            ("messages_key", source.messages_key.is_some()),
            ("too_long", source.too_long.is_some()),
        ];
        let (foreign, format, own): (&[_], _, _) = match source.format {
            SourceFormat::Text => (&of_examples, "text", "jsonl"),
            SourceFormat::Jsonl => (&[separator], "jsonl", "text"),
        };
        for (key, _) in foreign.iter().filter(|(_, given)| *given) {
            let wrong = format!("is for sources of `format = \"{own}\"`, and this one is {format}");
            let format_key = format!("{path}.format");
            self.add_for(&[&format!("{path}.{key}"), &format_key], &wrong, None);
        }
        let pair = source
            .prompt_key
            .as_ref()
            .or(source.completion_key.as_ref());
        if source.messages_key.is_some() && pair.is_some() {
            let wrong = "is given beside the key of a prompt or a completion";
            let hint = "an example is either messages, or a prompt and a completion".to_owned();
            self.add_for(&[&format!("{path}.messages_key")], wrong, Some(hint));
        }
    }

    fn precision(&mut self, precision: PrecisionConfig) {
        let PrecisionConfig { compute, states } = precision;
        if (compute, states) == (ComputePrecision::F32, StatePrecision::Bf16) {
            self.add_for(
                &["precision.states", "precision.compute"],
                "can be \"bf16\" only where the model computes in bf16: it computes with these weights",
                Some("set precision.compute = \"bf16\", or precision.states = \"f32\"".to_owned()),
            );
        }
    }

    fn optimizer(&mut self, optimizer: &OptimizerConfig) {
        self.positive("optimizer.lr", optimizer.lr);
        self.positive("optimizer.eps", optimizer.eps);
        if !optimizer.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            let wrong = format!(
                "must be at least 0 and below 1, found {:?}",
                optimizer.betas
            );
            self.add("optimizer.betas", &wrong);
        }
        self.not_negative("optimizer.weight_decay", optimizer.weight_decay);
        self.not_negative("optimizer.clip_grad_norm", optimizer.clip_grad_norm);
    }

    fn schedule(&mut self, schedule: &ScheduleConfig, steps: u64) {
        let warmup = schedule.warmup_steps.0;
        if warmup > steps {
            let wrong = format!("must be at most `train.steps` = {steps}, found {warmup}");
            self.add_for(&["schedule.warmup_steps", "train.steps"], &wrong, None);
        }
        let ratio = schedule.min_lr_ratio;
        if !(0.0..=1.0).contains(&ratio) {
            self.add(
                "schedule.min_lr_ratio",
                &format!("must be between 0 and 1, found {ratio:?}"),
            );
        }
    }

    fn at_least<T: Copy + PartialOrd + Display>(&mut self, key: &str, value: T, least: T) {
        if value < least {
            self.add(key, &format!("must be at least {least}, found {value}"));
        }
    }

    fn at_most<T: Copy + PartialOrd + Display>(&mut self, key: &str, value: T, most: T) {
        if value > most {
            self.add(key, &format!("must be at most {most}, found {value}"));
        }
    }

    fn positive(&mut self, key: &str, value: f64) {
        if !(value > 0.0 && value.is_finite()) {
            self.add(
                key,
                &format!("must be a finite number above 0, found {value:?}"),
            );
        }
    }

    fn not_negative(&mut self, key: &str, value: f64) {
        if !(value >= 0.0 && value.is_finite()) {
            self.add(
                key,
                &format!("must be a finite number of at least 0, found {value:?}"),
            );
        }
    }

    fn add(&mut self, key: &str, wrong: &str) {
        self.add_for(&[key], wrong, None);
    }

    /// Adds a problem of the first of `keys`, in which the others have a part.
    fn add_for(&mut self, keys: &[&str], wrong: &str, hint: Option<String>) {
        self.0.push(Problem {
            keys: keys.iter().map(ToString::to_string).collect(),
            message: format!("{} {wrong}", key_in_words(keys[0])),
            hint,
        });
    }
}
