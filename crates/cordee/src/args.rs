//! What can be typed. Structs and their help only; what a command does is in `commands`.

mod launch;
mod runs;

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum};
use cordee_config::{ByteSize, ComputePrecision, DeviceChoice};
use cordee_protocol::Collective;

pub(crate) use self::{
    launch::LaunchArgs,
    runs::{RunsCommand, StatusArgs},
};
use crate::{commands::FaultKind, console::ProgressMode};

/// Train transformer language models, over worker processes that move in step.
#[derive(Debug, Parser)]
#[command(name = "cordee", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model as a config says.
    Train(TrainArgs),
    /// Tell how a run stands: what every rank is doing, and where the time went so far.
    Status(StatusArgs),
    /// Look at runs, past and present.
    #[command(subcommand)]
    Runs(RunsCommand),
    /// Start any program that is written for torchrun, one process per rank: output in a log for each,
    /// the first failure named, no process left behind.
    Launch(Box<LaunchArgs>),
    /// Tell how much memory each rank of a run will need, and what to change where it does not fit.
    Plan(PlanArgs),
    /// Measure how fast this machine computes.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Compare what this machine computes with what is known to be right.
    #[command(subcommand)]
    Verify(VerifyCommand),
    /// Measure whether this machine is fit to train on: its set-up, devices, links and storage, and a
    /// little training. Ends with 0 where nothing is bad, else with 3. What could not be looked at is
    /// unknown: it is listed, and makes no failure unless by --strict.
    Smoke(SmokeArgs),
    /// Train a config while ranks are killed and stopped, the disk is full and checkpoints are damaged, and
    /// compare with an undisturbed run. Ends with 0 where every fault was named rightly and recovered from,
    /// and losses and weights are the same to the bit, else with 1.
    Chaos(ChaosArgs),
    /// Tell what this machine has to compute with, and what is missing. Ends with 0 where all is there
    /// that this build needs, else with 3.
    Doctor(DoctorArgs),
    /// Continue a prompt with a trained model.
    Generate(GenerateArgs),
    /// Write a run's weights as a Hugging Face directory.
    Export(ExportArgs),
    /// Show or check a config.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look into a checkpoint.
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// One rank of a run; started by `cordee train`.
    #[command(hide = true)]
    Worker,
}

/// A config file and what is changed in it.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The config, a TOML file.
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// Change a value, in TOML syntax; may be given many times.
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// Several machines, where no scheduler says so.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Several machines")]
pub(crate) struct NodesArgs {
    /// Machines that work together, or the fewest and the most [default: what the scheduler says, or 1].
    #[arg(long, value_name = "N|MIN:MAX")]
    pub(crate) nnodes: Option<String>,
    /// Which of the machines this is, from 0 [default: what the scheduler says].
    #[arg(long, alias = "node_rank", value_name = "N")]
    pub(crate) node_rank: Option<String>,
    /// Where machine 0 listens for the others, in place of the file by which they find it.
    #[arg(long, alias = "rdzv_endpoint", value_name = "HOST:PORT")]
    pub(crate) rdzv_endpoint: Option<String>,
    /// What the job is called, the same on all machines [default: the scheduler's name for it].
    #[arg(long, alias = "rdzv_id", value_name = "ID")]
    pub(crate) rdzv_id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Where everything the run writes goes [default: runs/NAME-DATE-TIME].
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Go on from the newest valid checkpoint of the run directory (without --run-dir: of the
    /// config's newest run), or from a given run directory or checkpoint. Starts afresh where there
    /// is none yet.
    #[arg(long, value_name = "auto|PATH", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub(crate) resume: Option<PathBuf>,
    /// End after this step, leaving the schedule as the config has it.
    #[arg(long, value_name = "N")]
    pub(crate) max_steps: Option<u64>,
    /// Seed of initial weights and data order; short for --set train.seed=N.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: Option<u64>,
    /// What to compute on; short for --set parallel.device=DEVICE.
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceArg>,
    /// How progress is shown: a bar on a terminal, lines elsewhere.
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto)]
    pub(crate) progress: ProgressMode,
    /// Check the config, say what would run, and stop.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) nodes: NodesArgs,
    /// Serve /healthz, /metrics for Prometheus and /status, of this machine's ranks, and on machine 0 of
    /// all; without an address on a free port of the loopback.
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:0")]
    pub(crate) http: Option<SocketAddr>,
}

/// What `cordee generate` takes.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A run directory (its newest valid checkpoint is used), a checkpoint in one, or a Hugging Face
    /// directory.
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// The text to continue.
    #[arg(long)]
    pub prompt: String,
    /// Most tokens to add.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = non_negative)]
    pub temperature: f64,
    /// Draw only from the likeliest tokens that together reach this probability.
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    pub top_p: f64,
    /// Seed of the draws.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// What to compute on.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
}

/// What `cordee plan` takes.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The config.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Worker processes; short for --set parallel.workers=N.
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Memory to fit into, such as 16GiB [default: this machine's, or its control group's].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Time the training step on random tokens: forward, backward, sums over ranks, norm, clip,
    /// update.
    Train(Box<BenchTrainArgs>),
    /// Time what ranks do together with memory: sums of gradients and the other collectives. Every
    /// result is checked. Ends with 0 where all are right, else with 1.
    Comm(BenchCommArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchCommArgs {
    /// Worker processes [default: 2, on GPUs as many as there are].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) workers: Option<usize>,
    /// Bytes on each rank: the powers of two of a range, as 1KiB..1GiB, or a list, as 1KiB,16MiB.
    #[arg(long, value_name = "SIZES", default_value = "1KiB..256MiB")]
    pub(crate) sizes: Sizes,
    /// What to measure; may be a list.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "all_reduce,reduce_scatter,all_gather,broadcast"
    )]
    pub(crate) operations: Vec<Collective>,
    /// Type of the numbers that are exchanged.
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = PrecisionArg::F32)]
    pub(crate) dtype: PrecisionArg,
    /// Where the numbers are: in the memory of the CPU or of GPUs.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// Deal the workers out to so many machines, all of them played by this one: between machines they
    /// exchange over TCP, by way of the loopback.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) machines: usize,
    /// Exchange memory of each process's own, in place of what gradients lie in.
    #[arg(long)]
    pub(crate) private: bool,
    /// About how long each operation is measured with each size, beside warm-up and checks.
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = positive)]
    pub(crate) seconds: f64,
    /// Print one JSON object a line in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Sizes of ranges, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes(pub(crate) Vec<usize>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |text: &str| match text.trim().parse::<ByteSize>() {
            Ok(ByteSize(0)) => Err("a size of 0 moves nothing".to_owned()),
            Ok(ByteSize(bytes)) => Ok(bytes as usize),
            Err(error) => Err(error.to_string()),
        };
        let Some((first, last)) = text.split_once("..") else {
            return text
                .split(',')
                .map(size)
                .collect::<Result<_, _>>()
                .map(Self);
        };
        let (first, last) = (size(first)?, size(last)?);
        let powers = (0..usize::BITS).map(|power| 1_usize << power);
        let sizes: Vec<_> = powers.filter(|it| (first..=last).contains(it)).collect();
        if sizes.is_empty() {
            return Err(format!("no power of two is from {first} to {last} bytes"));
        }
        Ok(Self(sizes))
    }
}

/// Where a shape is not given, the config's counts; without a config, the one named here.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
pub(crate) struct BenchTrainArgs {
    /// Take model, batch and optimizer from a config; what is given beside it comes first.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Change a value of the config, in TOML syntax; may be given many times.
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Width of the residual stream [default: 288].
    #[arg(long, value_name = "N")]
    pub(crate) dim: Option<usize>,
    /// Blocks [default: 6].
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<usize>,
    /// Query heads [default: 6].
    #[arg(long, value_name = "N")]
    pub(crate) heads: Option<usize>,
    /// Key and value heads [default: as many as query heads].
    #[arg(long, value_name = "N")]
    pub(crate) kv_heads: Option<usize>,
    /// Width of the feed-forward layer [default: 768].
    #[arg(long, value_name = "N")]
    pub(crate) ffn: Option<usize>,
    /// Tokens of the vocabulary [default: 32000, or the config's].
    #[arg(long, value_name = "N")]
    pub(crate) vocab: Option<usize>,
    /// Tokens of a sequence [default: 256].
    #[arg(long, value_name = "N")]
    pub(crate) seq: Option<usize>,
    /// Sequences of a step over all workers, each computing its share at once [default: 8].
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
    /// The head shares the embedding's weights.
    #[arg(long)]
    pub(crate) tie: bool,
    /// What to compute on [default: GPUs where this build has CUDA and there are some].
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceArg>,
    /// Worker processes [default: 1].
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Threads of each worker [default: the cores divided by the workers].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Numbers to compute in: `f32`, or `bf16` on GPUs [default: f32].
    #[arg(long, value_name = "TYPE")]
    pub(crate) precision: Option<String>,
    /// Numbers of weights and moments as the optimizer keeps them: `f32`, or `bf16` where the
    /// precision is [default: f32].
    #[arg(long, value_name = "TYPE")]
    pub(crate) states: Option<String>,
    /// What a block's backward computes again: `none`, `light` or `full` [default: none].
    #[arg(long, value_name = "WHAT")]
    pub(crate) recompute: Option<String>,
    /// What workers share out instead of each holding all: `none`, or `optimizer` for its state
    /// [default: none].
    #[arg(long, value_name = "WHAT")]
    pub(crate) shard: Option<String>,
    /// Measure each product of matrices of a step by itself, too, and those that could be one as one.
    #[arg(long)]
    pub(crate) products: bool,
    /// Measure what summing gradients over workers costs, and how much of it backwards hide.
    #[arg(long)]
    pub(crate) communication: bool,
    /// Emulate a link of so many bytes a second between workers on the CPU, such as 500MiB.
    #[arg(long, value_name = "SIZE", requires = "communication")]
    pub(crate) link: Option<ByteSize>,
    /// Steps that count.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub(crate) steps: usize,
    /// Steps before them that do not.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) warmup: usize,
    /// Peak of one worker's device in 10^12 operations a second, to compare with.
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(crate) peak_tflops: Option<f64>,
    /// Peak of its memory in 10^9 bytes a second: with both, each part stands beside the least time
    /// that it could take.
    #[arg(long, value_name = "X", value_parser = positive, requires = "peak_tflops")]
    pub(crate) peak_gbs: Option<f64>,
    /// Print one JSON object in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SmokeArgs {
    /// Where runs will write: its room and its storage are looked at. Nothing is left there.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// What to compute on.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// Worker processes [default: 2, on GPUs as many as there are].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) workers: Option<usize>,
    /// What is good enough, as configs/smoke/h100.toml has it [default: a copy of that].
    #[arg(long, value_name = "FILE")]
    pub(crate) thresholds: Option<PathBuf>,
    /// Bytes to write and read in DIR.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub(crate) storage: ByteSize,
    /// Most seconds for a check, where that is less than its own deadline.
    #[arg(long, value_name = "S", value_parser = positive)]
    pub(crate) deadline: Option<f64>,
    /// What is unknown is a failure too.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Write a report for continuous integration, in the XML of `JUnit`.
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// Print one JSON object in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChaosArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Faults in all.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub(crate) faults: usize,
    /// Decides which faults there are, at which steps and of which ranks.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Worker processes, of all hosts together.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    pub(crate) workers: usize,
    /// Have the second run on so many hosts, each a network namespace of this machine, and harm them, their
    /// agents and their links, too (wants root).
    #[arg(long, value_name = "N", value_parser = several)]
    pub(crate) hosts: Option<usize>,
    /// Where both runs go, and stay [default: a temporary directory, which stays if something is wrong].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Kinds of faults to choose from, separated by commas [default: all that this machine allows].
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',')]
    pub(crate) only: Vec<FaultKind>,
    /// A kind of fault that this machine does not allow is a failure.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print one JSON object in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Set where the command has started itself in a mount namespace of its own.
    #[arg(long, hide = true)]
    pub(crate) own_mounts: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VerifyCommand {
    /// Replay training steps that another implementation recorded, and compare loss, gradient norm
    /// and logits. Ends with 0 where all are within their bounds, else with 1.
    Trace(VerifyTraceArgs),
    /// Compute every operator, forward and backward, on this machine's device, and compare with plain
    /// loops in f64. Ends with 0 where all errors are within their bounds, else with 1.
    Operators(VerifyOperatorsArgs),
    /// Have ranks sum, share out and pass on buffers of all types and many sizes, and compare every element
    /// with what it must be. Ends with 0 where all are right, else with 1.
    Collectives(VerifyCollectivesArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VerifyCollectivesArgs {
    /// Worker processes.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    pub(crate) workers: usize,
    /// Where the buffers are: of GPUs, NCCL does the work.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// Deal the workers out to so many machines, all of them played by this one: between machines they
    /// exchange over TCP, by way of the loopback.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) machines: usize,
    /// How long a worker waits for the others before it gives up.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
    /// Print one JSON object in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyOperatorsArgs {
    /// What to compute on.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// Numbers to compute in.
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = PrecisionArg::F32)]
    pub(crate) precision: PrecisionArg,
    /// Print one JSON object in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyTraceArgs {
    /// A directory with config.json, model.safetensors, batches.safetensors, trace.json and, for the
    /// logits, logits.safetensors.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Worker processes; the rows of a micro-batch are dealt to them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) workers: usize,
    /// What a block's backward computes again.
    #[arg(long, value_name = "WHAT", default_value = "none", value_parser = ["none", "light", "full"])]
    pub(crate) recompute: String,
    /// What workers share out instead of each holding all.
    #[arg(long, value_name = "WHAT", default_value = "none", value_parser = ["none", "optimizer"])]
    pub(crate) shard: String,
    /// Least bytes of gradients that are summed over workers at once [default: 4MiB].
    #[arg(long, value_name = "SIZE")]
    pub(crate) bucket_size: Option<ByteSize>,
    /// What to compute on.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// Numbers to compute in.
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = PrecisionArg::F32)]
    pub(crate) precision: PrecisionArg,
    /// Numbers of weights and moments as the optimizer keeps them: `bf16` where the precision is.
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = PrecisionArg::F32)]
    pub(crate) states: PrecisionArg,
    /// Print every step too.
    #[arg(long)]
    pub(crate) steps: bool,
    /// Print one JSON object in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `cordee export` takes.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run directory (its newest valid checkpoint is used), or a checkpoint in one.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Where config.json, model.safetensors and the tokenizer go; new or empty.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Type of the weights in the files.
    #[arg(long, value_enum, default_value_t = ExportType::F32)]
    pub dtype: ExportType,
}

/// Types of weights in files.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ExportType {
    /// As they are in the checkpoint.
    F32,
    /// Rounded to the nearest, half the size.
    Bf16,
}

/// What to compute on, as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DeviceArg {
    /// GPUs where this build has CUDA and there are some, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// GPUs, one for each worker.
    Cuda,
}

impl DeviceArg {
    pub(crate) fn choice(self) -> DeviceChoice {
        match self {
            Self::Auto => DeviceChoice::Auto,
            Self::Cpu => DeviceChoice::Cpu,
            Self::Cuda => DeviceChoice::Cuda,
        }
    }

    /// As `--set` takes it.
    pub(crate) fn as_set(self) -> String {
        let name = match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        };
        format!("parallel.device={name:?}")
    }
}

/// Numbers to compute in, as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// 32-bit floating point.
    F32,
    /// bfloat16, on GPUs.
    Bf16,
}

impl PrecisionArg {
    pub(crate) fn precision(self) -> ComputePrecision {
        match self {
            Self::F32 => ComputePrecision::F32,
            Self::Bf16 => ComputePrecision::Bf16,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the resolved config, with the origin of each value.
    Show(ConfigArgs),
    /// Check a config without starting anything.
    Check(ConfigArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// Verify a checkpoint and print its tensors with a hash of each.
    Inspect {
        /// A run directory (its newest valid checkpoint is used), or a checkpoint in one.
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
}

fn non_negative(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err("expected a number of 0 or more".to_owned())
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn several(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (2..=64).contains(&number) => Ok(number),
        _ => Err("a number from 2 to 64 is wanted".to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if value >= 1 => Ok(value),
        _ => Err("expected a whole number of 1 or more".to_owned()),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if value > 0.0 && value <= 1.0 {
        Ok(value)
    } else {
        Err("expected a number above 0 and up to 1".to_owned())
    }
}
