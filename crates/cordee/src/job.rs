//! What the launcher hands to each worker, beside who it is.

use std::{
    fs::File,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::Context;
use cordee_config::{DeviceKind, ParallelConfig, Plan, PrecisionConfig, Recompute, TimeSpan};
use cordee_protocol::{Check, Collective, Secret};
use serde::{Deserialize, Serialize};

/// What every rank of a launch does, the same for all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Number of ranks.
    pub world_size: usize,
    /// Where they are, if not all on one machine.
    pub across: Option<Across>,
    /// Threads of each rank.
    pub threads: usize,
    /// How long a rank waits for the others.
    pub timeout: TimeSpan,
    /// What ranks compute on; on GPUs, each on the one of its local rank.
    pub device: DeviceKind,
    /// Numbers to compute in.
    pub precision: PrecisionConfig,
    /// What is to be done.
    pub task: Task,
}

/// Ranks on several machines, and how they reach each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Across {
    /// How many ranks each machine has.
    pub ranks: Vec<usize>,
    /// By rank, where the rank of the same number on the machine before listens.
    pub below: Vec<Vec<SocketAddr>>,
    /// What ranks of this attempt know and nobody else.
    pub secret: Secret,
}

/// The kinds of work that ranks can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Train a model.
    Train(TrainTask),
    /// Measure the training step.
    Bench(BenchTask),
    /// Measure the collectives.
    Collectives(CollectivesTask),
    /// Look at the machine.
    Smoke(SmokeTask),
    /// Compare training steps with recorded ones.
    Trace(TraceTask),
    /// Compare the operators with their references.
    Operators,
    /// Compare results of collectives with what every rank can tell they must be.
    VerifyCollectives,
}

/// Train a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainTask {
    /// Config and what follows from it.
    pub plan: Plan,
    /// The directory of the prepared corpus.
    pub corpus: PathBuf,
    /// Where everything that the run writes goes.
    pub run_dir: PathBuf,
    /// The checkpoint to go on from.
    pub resume: Option<PathBuf>,
    /// The step to end after.
    pub last_step: u64,
    /// The last step that an earlier attempt has done.
    pub furthest_step: u64,
    /// What was said before there were ranks, for the record.
    pub warnings: Vec<String>,
}

/// Measure the training step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BenchTask {
    /// Config and what follows from it.
    pub plan: Plan,
    /// Tokens to draw from.
    pub vocab_size: usize,
    /// Steps that do not count, done first.
    pub warmup: usize,
    /// Steps that count.
    pub steps: usize,
    /// Whether to measure each product of a step by itself.
    pub products: bool,
    /// Whether to measure what summing gradients costs.
    pub communication: bool,
    /// Bytes per second of a link to emulate between ranks.
    pub link: Option<f64>,
}

/// Measure the collectives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectivesTask {
    /// What to measure.
    pub operations: Vec<Collective>,
    /// Bytes of each range.
    pub sizes: Vec<usize>,
    /// Memory of each process by itself, in place of what gradients lie in.
    pub private: bool,
    /// Seconds of the rounds that count, for each operation and size.
    pub seconds: f64,
}

/// Look at the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SmokeTask {
    /// At what of it.
    pub part: SmokePart,
    /// Where runs would write.
    pub dir: PathBuf,
    /// Bytes to write and read there.
    pub storage_bytes: u64,
    /// Most seconds for a check, where that is less than its own deadline.
    pub most_seconds: Option<f64>,
}

/// What ranks look at together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SmokePart {
    /// Everything but devices, from one rank.
    Host,
    /// Each rank at its own device, not knowing of the others.
    Devices,
    /// What ranks do together.
    Links,
}

impl SmokeTask {
    /// How long a check may take.
    pub fn deadline(&self, check: Check) -> Duration {
        check.deadline_within(self.most_seconds.map(Duration::from_secs_f64))
    }
}

/// Compare training steps with recorded ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TraceTask {
    /// The directory of the trace.
    pub dir: PathBuf,
    /// What a block's backward computes again.
    pub recompute: Recompute,
    /// How the work is shared out.
    pub parallel: ParallelConfig,
}

impl Job {
    /// A job on the ranks and threads of `plan`.
    pub(crate) fn of(plan: &Plan, task: Task) -> Self {
        let parallel = &plan.config.parallel;
        Self {
            world_size: plan.world_size,
            across: None,
            threads: parallel
                .threads
                .unwrap_or_else(|| threads_per_rank(plan.world_size)),
            timeout: parallel.timeout,
            device: plan.device,
            precision: plan.config.precision,
            task,
        }
    }

    /// Puts the job into anonymous memory that workers inherit: it appears in no argument list, in
    /// no environment and on no disk.
    pub(crate) fn to_fd(&self) -> anyhow::Result<OwnedFd> {
        let text = serde_json::to_vec(self)?;
        let fd = rustix::fs::memfd_create("cordee-job", rustix::fs::MemfdFlags::CLOEXEC)
            .context("memfd_create for the job")?;
        let file = File::from(fd);
        file.write_all_at(&text, 0).context("writing the job")?;
        Ok(file.into())
    }

    /// Reads the job that the launcher left in `file`.
    pub fn from_file(file: &File) -> anyhow::Result<Self> {
        let mut text = vec![0; file.metadata()?.len() as usize];
        file.read_exact_at(&mut text, 0)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// The machine's cores, shared out.
pub(crate) fn threads_per_rank(world_size: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / world_size).max(1)
}
