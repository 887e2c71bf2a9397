//! The schema: every section and key of a config file, with its default.
//!
//! Doc comments are the reference that users read: each key says its unit and what it decides. The
//! macros around the items keep those comments for run time (`reference`, error messages); what
//! stands inside is plain Rust. It must not know how a config is found, merged or checked.

mod model;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    describe::{choice, section},
    units::{ByteSize, Count, TimeSpan},
};

pub use model::*;

section! {
    /// A whole config.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Config {
        /// The architecture.
        pub model: ModelConfig,
        /// What it learns from.
        pub data: DataConfig,
        /// How long and in which portions.
        pub train: TrainConfig,
        /// How weights are updated.
        #[serde(default)]
        pub optimizer: OptimizerConfig,
        /// How the learning rate changes.
        #[serde(default)]
        pub schedule: ScheduleConfig,
        /// Over how many processes.
        #[serde(default)]
        pub parallel: ParallelConfig,
        /// In which numbers.
        #[serde(default)]
        pub precision: PrecisionConfig,
        /// When state goes to disk.
        #[serde(default)]
        pub checkpoint: CheckpointConfig,
        /// When it is tested.
        #[serde(default)]
        pub eval: EvalConfig,
        /// What becomes of failures.
        #[serde(default)]
        pub launch: LaunchConfig,
        /// What is told.
        #[serde(default)]
        pub log: LogConfig,
    }
}

section! {
    /// `[data]`: text, and how it becomes tokens.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct DataConfig {
        /// Tokens per training sequence.
        pub seq_len: usize,
        /// Where text comes from.
        pub sources: Vec<SourceConfig>,
        /// A tokenizer to use: a `tokenizer.json`, or the directory that holds one; the files beside
        /// it say which token ends a text and how conversations are written. When absent, that of
        /// `model.init_from` if there is one, else a byte-level BPE vocabulary of `vocab_size`, trained
        /// on the training split.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tokenizer: Option<PathBuf>,
        /// Size of the vocabulary that is trained when no `tokenizer` is given.
        #[serde(default = "defaults::vocab_size")]
        pub vocab_size: usize,
        /// Share of each source that is held out for validation: of text its end, of examples those
        /// whose prompts have the smallest hashes, so that no prompt is on both sides.
        #[serde(default = "defaults::validation_fraction")]
        pub validation_fraction: f64,
        /// Where tokenised shards are kept; `$XDG_CACHE_HOME/cordee` or `~/.cache/cordee` when
        /// absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub cache_dir: Option<PathBuf>,
    }
}

section! {
    /// `[[data.sources]]`: one body of text, or of examples.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct SourceConfig {
        /// Name in metrics; unique.
        pub name: String,
        /// A UTF-8 file, or a directory whose files are read in order of their names: those that end
        /// in `.txt`, or in `.jsonl` where that is the format.
        pub path: PathBuf,
        /// What stands in it.
        #[serde(default)]
        pub format: SourceFormat,
        /// Share of the training sequences, relative to the other sources; in proportion to its
        /// tokens when absent (then for all sources).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub weight: Option<f64>,
        /// Text between documents; the whole file is one document when absent. Only for text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub document_separator: Option<String>,
        /// The key of an example's prompt; `prompt` when absent. Only for `jsonl`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub prompt_key: Option<String>,
        /// The key of an example's completion; `completion` when absent. Only for `jsonl`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub completion_key: Option<String>,
        /// The key of an example's messages; `messages` when absent. Only for `jsonl`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub messages_key: Option<String>,
        /// What becomes of an example of more than `seq_len + 1` tokens; `skip` when absent. Only for
        /// `jsonl`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub too_long: Option<TooLong>,
    }
}

choice! {
    /// What stands in the files of a source.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum SourceFormat {
        /// Running text, all of which is learned.
        #[default]
        #[serde(rename = "text")]
        Text,
        /// An example a line, as JSON: a prompt and the completion that is learned, or the messages
        /// of a conversation, of which the assistant's are learned.
        #[serde(rename = "jsonl")]
        Jsonl,
    }
}

choice! {
    /// What becomes of an example that is longer than a sequence.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum TooLong {
        /// It is left out; a warning says how many are.
        #[default]
        #[serde(rename = "skip")]
        Skip,
        /// It loses its end; a warning says how many do.
        #[serde(rename = "truncate")]
        Truncate,
        /// The run does not start, and the example is named.
        #[serde(rename = "error")]
        Error,
    }
}

section! {
    /// `[train]`: how long and in which portions.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct TrainConfig {
        /// Optimizer steps of the whole run.
        pub steps: Count,
        /// Sequences per optimizer step, over all ranks and micro-batches.
        pub global_batch_size: usize,
        /// Sequences that a rank computes at once; accumulation steps follow from it.
        pub micro_batch_size: usize,
        /// Seed of initial weights and of the order of data.
        #[serde(default = "defaults::seed")]
        pub seed: u64,
        /// What is computed again for the backward in place of being kept since the forward. It
        /// trades time for memory and never changes a bit of the result.
        #[serde(default)]
        pub recompute: Recompute,
    }
}

impl DeviceChoice {
    /// What it comes to on a machine where `auto` means `otherwise`.
    pub fn or(self, otherwise: DeviceKind) -> DeviceKind {
        match self {
            Self::Auto => otherwise,
            Self::Cpu => DeviceKind::Cpu,
            Self::Cuda => DeviceKind::Cuda,
        }
    }
}

/// What workers compute on. A worker on GPUs takes the one of its local rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// NVIDIA's GPUs.
    Cuda,
}

impl DeviceKind {
    /// As a config spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl From<DeviceKind> for DeviceChoice {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Cpu => Self::Cpu,
            DeviceKind::Cuda => Self::Cuda,
        }
    }
}

impl ComputePrecision {
    /// As a config spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl PrecisionConfig {
    /// In a few words.
    pub fn name(self) -> &'static str {
        match (self.compute, self.states) {
            (ComputePrecision::F32, _) => "f32",
            (ComputePrecision::Bf16, StatePrecision::F32) => "bf16",
            (ComputePrecision::Bf16, StatePrecision::Bf16) => "bf16 with bf16 states",
        }
    }
}

impl From<ComputePrecision> for PrecisionConfig {
    /// With 32-bit states.
    fn from(compute: ComputePrecision) -> Self {
        Self {
            compute,
            states: StatePrecision::F32,
        }
    }
}

impl Recompute {
    /// As a config spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Light => "light",
            Self::Full => "full",
        }
    }
}

choice! {
    /// What a block's backward computes again.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum Recompute {
        /// Nothing: all that the backward needs is kept.
        #[default]
        #[serde(rename = "none")]
        None,
        /// What is cheap: outputs of norms and activations of the feed-forward layer.
        #[serde(rename = "light")]
        Light,
        /// Everything: only a block's input is kept, and its forward runs again.
        #[serde(rename = "full")]
        Full,
    }
}

section! {
    /// `[optimizer]`: how weights are updated.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct OptimizerConfig {
        /// The algorithm.
        pub kind: OptimizerKind,
        /// Peak learning rate.
        pub lr: f64,
        /// Decay rates of the first and second moment.
        pub betas: [f64; 2],
        /// Added to the root of the second moment.
        pub eps: f64,
        /// Decoupled weight decay, on parameters with two or more dimensions.
        pub weight_decay: f64,
        /// Gradients with a larger norm are scaled down to it; 0 turns clipping off.
        pub clip_grad_norm: f64,
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            lr: 3e-4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            clip_grad_norm: 1.0,
        }
    }
}

choice! {
    /// Optimizers.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum OptimizerKind {
        /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).
        #[default]
        #[serde(rename = "adamw")]
        Adamw,
    }
}

section! {
    /// `[schedule]`: the learning rate over the run.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct ScheduleConfig {
        /// Its shape after warm-up.
        pub kind: ScheduleKind,
        /// Steps in which the rate rises linearly to `optimizer.lr`.
        pub warmup_steps: Count,
        /// The rate at the last step, as a share of `optimizer.lr`.
        pub min_lr_ratio: f64,
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup_steps: Count(0),
            min_lr_ratio: 0.1,
        }
    }
}

choice! {
    /// Shapes of the learning rate after warm-up.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum ScheduleKind {
        /// Half a cosine from the peak to `min_lr_ratio` of it.
        #[default]
        #[serde(rename = "cosine")]
        Cosine,
        /// A straight line from the peak to `min_lr_ratio` of it.
        #[serde(rename = "linear")]
        Linear,
        /// The peak throughout.
        #[serde(rename = "constant")]
        Constant,
    }
}

section! {
    /// `[parallel]`: processes, threads and what they compute on.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct ParallelConfig {
        /// What workers compute on.
        pub device: DeviceChoice,
        /// Worker processes on this machine; when absent, one for each GPU, or 2 on the CPU. A run on
        /// several machines writes down those of all.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub workers: Option<usize>,
        /// Threads per worker; the machine's cores divided by the workers when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub threads: Option<usize>,
        /// What each worker holds a part of instead of all of it. Weights and losses are the same to
        /// the last bit on the CPU, and on two GPUs; for more, NCCL chooses the order of a sum.
        pub shard: Shard,
        /// Whether gradients are summed over workers while backwards still run.
        pub overlap: bool,
        /// Least bytes of gradients that are summed over workers at once.
        pub bucket_size: ByteSize,
        /// How long a rank waits for the others in a collective before the run is stopped.
        pub timeout: TimeSpan,
    }
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            workers: None,
            threads: None,
            shard: Shard::None,
            overlap: true,
            bucket_size: ByteSize(4 << 20),
            timeout: TimeSpan::from_secs(600),
        }
    }
}

choice! {
    /// What is dealt out to the workers.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum Shard {
        /// Nothing: each worker holds everything.
        #[default]
        #[serde(rename = "none")]
        None,
        /// Moments, and the 32-bit weights where the model computes in other numbers: each worker
        /// updates its part, and the updated weights are gathered (`ZeRO` stage 1, Rajbhandari et al. 2020).
        #[serde(rename = "optimizer")]
        #[serde(alias = "zero1")]
        Optimizer,
    }
}

choice! {
    /// What workers compute on, as a config asks for it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum DeviceChoice {
        /// GPUs, in a build with CUDA on a machine that has some; else the CPU. What it was is written
        /// down with the run.
        #[default]
        #[serde(rename = "auto")]
        Auto,
        /// The CPU.
        #[serde(rename = "cpu")]
        Cpu,
        /// NVIDIA's GPUs, one for each worker; needs a build with CUDA.
        #[serde(rename = "cuda")]
        #[serde(alias = "gpu")]
        Cuda,
    }
}

section! {
    /// `[precision]`: in which numbers the model computes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct PrecisionConfig {
        /// Type of weights and activations; gradients are 32-bit always.
        pub compute: ComputePrecision,
        /// Type of what the optimizer keeps: the weights that it updates, and both moments.
        pub states: StatePrecision,
    }
}

choice! {
    /// Number types of what the optimizer keeps.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum StatePrecision {
        /// 32-bit floating point.
        #[default]
        #[serde(rename = "f32")]
        F32,
        /// bfloat16, rounded stochastically, with no 32-bit copy of the weights: 10 bytes a parameter
        /// with its gradient instead of 18, and a faster update that is not as exact. Where weights
        /// and activations are bfloat16.
        #[serde(rename = "bf16")]
        #[serde(alias = "bfloat16")]
        Bf16,
    }
}

choice! {
    /// Number types of the computation.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum ComputePrecision {
        /// 32-bit floating point throughout.
        #[default]
        #[serde(rename = "f32")]
        F32,
        /// bfloat16, with 32-bit sums within operators, gradients, moments and a 32-bit copy of the
        /// weights that is updated. On GPUs only.
        #[serde(rename = "bf16")]
        #[serde(alias = "bfloat16")]
        Bf16,
    }
}

section! {
    /// `[checkpoint]`: when state goes to disk.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct CheckpointConfig {
        /// Steps between checkpoints; 0 writes only the last one.
        pub every: Count,
        /// Newest checkpoints kept; 0 keeps all.
        pub keep: usize,
        /// Size of the pieces that files are checksummed in.
        pub piece_size: ByteSize,
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every: Count(500),
            keep: 2,
            piece_size: ByteSize(16 << 20),
        }
    }
}

section! {
    /// `[eval]`: when the model is tested on held-out text.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct EvalConfig {
        /// Steps between validations; 0 validates only at the end.
        pub every: Count,
        /// What a sample at the end of the run continues; no sample when empty.
        pub sample_prompt: String,
        /// Tokens of that sample.
        pub sample_tokens: usize,
    }
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every: Count(0),
            sample_prompt: String::new(),
            sample_tokens: 64,
        }
    }
}

section! {
    /// `[launch]`: what becomes of ranks that fail or hang.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct LaunchConfig {
        /// Restarts from the newest checkpoint within `restart_window` before a run is given up; a new
        /// checkpoint sets the count back to 0. With 0 a run ends with its first failure. A failure that
        /// happens twice at the same place without a new checkpoint between ends it in any case.
        pub max_restarts: usize,
        /// How long a restart counts.
        pub restart_window: TimeSpan,
        /// Least time that a rank may get nothing done within a step before it counts as hung: a step
        /// may take 5 times what 99 of 100 steps of this run take, if that is longer.
        pub step_timeout: TimeSpan,
        /// The same outside of steps, and in the first step of a process: opening devices, loading,
        /// compiling kernels, validations, checkpoints.
        pub phase_timeout: TimeSpan,
        /// With several nodes, how long nothing may be heard of one before it counts as lost.
        pub node_timeout: TimeSpan,
        /// How long is waited for the nodes of a run, at its start and after one was lost.
        pub join_timeout: TimeSpan,
        /// How long is waited for more nodes once there are as many as a run must have.
        pub last_call: TimeSpan,
    }
}

impl Default for LaunchConfig {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            restart_window: TimeSpan::from_secs(3600),
            step_timeout: TimeSpan::from_secs(60),
            phase_timeout: TimeSpan::from_secs(600),
            node_timeout: TimeSpan::from_secs(15),
            join_timeout: TimeSpan::from_secs(600),
            last_call: TimeSpan::from_secs(30),
        }
    }
}

section! {
    /// `[log]`: what is told.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct LogConfig {
        /// Steps between lines on a console without a progress bar.
        pub every: Count,
        /// Whether to write TensorBoard event files.
        pub tensorboard: bool,
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            every: Count(10),
            tensorboard: true,
        }
    }
}

mod defaults {
    pub(super) fn vocab_size() -> usize {
        4096
    }
    pub(super) fn validation_fraction() -> f64 {
        0.05
    }
    pub(super) fn seed() -> u64 {
        1
    }
}
