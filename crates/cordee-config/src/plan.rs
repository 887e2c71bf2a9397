//! What a run will do: the config with nothing left open, and what follows from it.
//!
//! A plan is made once, by the launcher, and handed to every worker as JSON; it must not depend on
//! the machine that reads it.

use serde::{Deserialize, Serialize};

use crate::{
    fingerprint::fingerprint,
    schema::{Config, DeviceKind, ModelFamily},
};

/// What a config leaves to the machine, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What workers compute on.
    pub device: DeviceKind,
    /// Worker processes.
    pub workers: usize,
}

impl Machine {
    /// So many workers on the CPU.
    pub const fn cpu(workers: usize) -> Self {
        Self {
            device: DeviceKind::Cpu,
            workers,
        }
    }
}

/// A config with `kv_heads`, `head_dim`, `device` and `workers` filled in, and the numbers that
/// follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The resolved config.
    pub config: Config,
    /// What they compute on.
    pub device: DeviceKind,
    /// Worker processes.
    pub world_size: usize,
    /// Sequences that a rank computes at once.
    pub micro_batch_size: usize,
    /// Micro-batches that a rank computes for one optimizer step.
    pub accumulation_steps: usize,
    /// Sequences of one optimizer step, over all ranks and micro-batches.
    pub global_batch_size: usize,
    /// Tokens of one optimizer step, over all ranks and micro-batches.
    pub tokens_per_step: u64,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// A hash, in 32 hexadecimal digits, of everything in the config that decides the result. Two
    /// runs with the same fingerprint, data and tokenizer compute the same weights.
    pub fingerprint: String,
}

impl Plan {
    /// The plan for a valid config on a machine that it fits.
    pub(crate) fn new(config: &Config, machine: Machine) -> Self {
        let mut config = config.clone();
        let model = &mut config.model;
        model.kv_heads.get_or_insert(model.heads);
        model.head_dim.get_or_insert(model.dim / model.heads);
        if model.family == ModelFamily::Gpt2 {
            model.max_positions.get_or_insert(config.data.seq_len);
        }
        let workers = machine.workers;
        config.parallel.device = machine.device.into();
        config.parallel.workers = Some(workers);
        let train = &config.train;
        let tokens_per_step = train.global_batch_size as u64 * config.data.seq_len as u64;
        Self {
            device: machine.device,
            world_size: workers,
            micro_batch_size: train.micro_batch_size,
            accumulation_steps: train.global_batch_size / (train.micro_batch_size * workers),
            global_batch_size: train.global_batch_size,
            tokens_per_step,
            steps: train.steps.0,
            fingerprint: fingerprint(&config),
            config,
        }
    }
}
