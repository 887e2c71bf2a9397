//! `cordee worker`: one rank of a run, as the launcher starts it.

use std::{
    borrow::Cow,
    env,
    fs::{File, OpenOptions},
    io::{self, Write},
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, anyhow};
use cordee::{BenchTask, Failure, Job, SmokePart, Task, TraceTask, TrainTask};
use cordee_comm::{
    Call, CommError, HostGroup, Machines, MachinesGroup, Neighbours, ProcessGroup,
    SharedMemoryGroup, Witness, conformance as collectives,
};
use cordee_config::{ComputePrecision, DeviceKind, PrecisionConfig, StatePrecision};
use cordee_data::Corpus;
use cordee_memory::{DType, MemoryError, SharedMemory, SharedWords};
use cordee_ops::{Device, GpuOptions, conformance};
use cordee_protocol::{
    CollectiveFinding, CollectivesReport, ExitCode, Failure as Report, OperatorFinding,
    OperatorsReport, Phase, StatusPage, WorkerEnvironment, WorkerMessage, names,
};
use cordee_train::{Bench, Compute, Run, Trace, TrainError, bench, replay, train};
use nccl_sys::OpenError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::{ranks::Ranks, smoke};

const NO_NCCL: &str = "install the package nvidia-nccl-cu13, or name a directory that holds libnccl.so.2 in \
     CORDEE_LIBRARY_PATH; `cordee doctor` tells where it is looked for";

/// Runs the rank. What goes wrong is told to the launcher, which shows it.
pub(crate) fn run() -> Result<u8, Failure> {
    let environment =
        WorkerEnvironment::read(|name| env::var(name).ok()).map_err(Failure::usage)?;
    let messages = Messages::open()?;
    let error = match run_rank(&environment, &messages) {
        Ok(exit) => return Ok(exit.code()),
        Err(error) => error,
    };
    let train = error.downcast_ref::<TrainError>();
    let no_nccl = error.downcast_ref::<OpenError>().is_some();
    let otherwise = if no_nccl {
        ExitCode::Environment
    } else {
        ExitCode::Failed
    };
    let code = train.map_or(otherwise, TrainError::exit_code);
    let hint = match train {
        _ if no_nccl => Some(NO_NCCL.into()),
        train => train.and_then(TrainError::hint),
    };
    messages.send(&WorkerMessage::Failed(Report {
        rank: environment.rank,
        blames: blamed(train),
        code: code.code(),
        message: format!("{error:#}"),
        hint: hint.map(Cow::into_owned),
    }));
    Err(Failure::new(code, error))
}

fn run_rank(environment: &WorkerEnvironment, messages: &Messages) -> anyhow::Result<ExitCode> {
    let status = status_page()?;
    status.enter(Phase::Starting, 0);
    let job = Job::from_file(&inherited(names::JOB_FD, OpenOptions::new().read(true))?)
        .context("reading the job")?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGUSR1, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("catching signals")?;
    }
    // This thread computes too: otherwise every parallel loop would change threads twice.
    rayon::ThreadPoolBuilder::new()
        .num_threads(job.threads)
        .use_current_thread()
        .build_global()
        .context("starting threads")?;

    if let Task::Smoke(task) = &job.task {
        match task.part {
            SmokePart::Host => return Ok(smoke::host(task, messages)),
            SmokePart::Devices => {
                let rank = environment.rank;
                let compute = compute(&job, environment.local_rank);
                return Ok(smoke::device(rank, compute, messages));
            }
            SmokePart::Links => {}
        }
    }
    let memory = inherited(
        names::SHARED_MEMORY_FD,
        OpenOptions::new().read(true).write(true),
    )?;
    let memory = SharedMemory::from_fd(OwnedFd::from(memory))?;
    let witness = Arc::new(Tells(status.clone()));
    let mut group = meet(environment, &job, memory, witness)?;
    let compute = compute(&job, environment.local_rank);
    let compute = match compute {
        Ok(compute) => compute,
        Err(error) => {
            group.fail(&error.to_string());
            return Err(error);
        }
    };
    let machines = job.across.as_ref().map_or(1, |across| across.ranks.len());
    let mut ranks = Ranks::new(group, machines, &compute.device)?;
    let transport = ranks.transport();
    let group = ranks.group();
    let done = match &job.task {
        Task::Train(task) => {
            let rank = Rank {
                compute: &compute,
                transport: &transport,
                messages,
                stop: &stop,
                status: &status,
            };
            run_training(task, &rank, group)
        }
        Task::Bench(task) => run_bench(task, &compute, group, messages),
        Task::Smoke(_) => smoke::links(&compute, group, messages),
        Task::Collectives(task) => smoke::collectives(task, &compute, group, messages),
        Task::Trace(task) => run_trace(task, compute, group, messages),
        Task::Operators => run_operators(compute, messages),
        Task::VerifyCollectives => verify_collectives(&compute.device, &transport, group, messages),
    };
    let done = done.and_then(|exit| Ok(ranks.finish().map(|()| exit)?));
    done.map_err(|error| {
        ranks.group().fail(&error.to_string());
        error.into()
    })
}

/// Meets the other ranks: in the memory that they share, and where they are on several machines over the
/// network too.
fn meet(
    environment: &WorkerEnvironment,
    job: &Job,
    memory: SharedMemory,
    witness: Arc<Tells>,
) -> anyhow::Result<Box<dyn HostGroup>> {
    let (rank, timeout) = (environment.rank, job.timeout.0);
    let Some(across) = &job.across else {
        let group = SharedMemoryGroup::join(memory, rank, environment.world_size, timeout)
            .map_err(TrainError::from)?;
        return Ok(Box::new(group.witnessed_by(witness)));
    };
    let machines = Machines::new(&across.ranks, 0);
    let machines = Machines::new(&across.ranks, machines.machine_of(rank));
    let local_rank = rank - machines.ranks_of(machines.own()).start;
    // Where others reach this rank is its standard input, if there is somebody who has to.
    let listens = machines.own() + 1 < machines.count() && local_rank < machines.rails();
    let listener = listens.then(|| io::stdin().as_fd().try_clone_to_owned());
    let listener = listener
        .transpose()
        .context("taking the socket at which to be reached")?;
    let neighbours = Neighbours {
        listener: listener.map(TcpListener::from),
        below: across.below[rank].clone(),
        secret: across.secret.clone(),
    };
    let group = MachinesGroup::join(memory, local_rank, machines, &neighbours, timeout)
        .map_err(TrainError::from)?;
    Ok(Box::new(group.witnessed_by(witness)))
}

/// Where this rank computes, and in which numbers.
fn compute(job: &Job, local_rank: usize) -> anyhow::Result<Compute> {
    let per_gpu = cordee::workers_per_gpu().map_err(|failure| anyhow!("{failure}"))?;
    let device = open_device(job.device, local_rank / per_gpu)?;
    let [numbers, states] = numbers(job.precision);
    Ok(Compute {
        device,
        numbers,
        states,
    })
}

/// Those of weights and activations, and those of what the optimizer keeps.
pub(super) fn numbers(precision: PrecisionConfig) -> [DType; 2] {
    let numbers = match precision.compute {
        ComputePrecision::F32 => DType::F32,
        ComputePrecision::Bf16 => DType::Bf16,
    };
    let states = match precision.states {
        StatePrecision::F32 => DType::F32,
        StatePrecision::Bf16 => DType::Bf16,
    };
    [numbers, states]
}

/// The processors, or the GPU of this number.
pub(super) fn open_device(kind: DeviceKind, ordinal: usize) -> anyhow::Result<Device> {
    Ok(match kind {
        DeviceKind::Cpu => Device::HOST,
        DeviceKind::Cuda => {
            let kernel_cache = cordee::cache_directory().map(|cache| cache.join("kernels"));
            Device::gpu(ordinal, &GpuOptions { kernel_cache }).map_err(TrainError::from)?
        }
    })
}

/// What a rank trains with.
struct Rank<'a> {
    compute: &'a Compute,
    transport: &'a str,
    messages: &'a Messages,
    stop: &'a AtomicBool,
    status: &'a StatusPage,
}

fn run_training(
    task: &TrainTask,
    rank: &Rank<'_>,
    group: &mut dyn ProcessGroup,
) -> Result<ExitCode, TrainError> {
    let corpus = Corpus::open(&task.corpus)?;
    let run = Run {
        plan: &task.plan,
        compute: rank.compute,
        transport: rank.transport,
        corpus: &corpus,
        run_dir: &task.run_dir,
        resume: task.resume.as_deref(),
        last_step: task.last_step,
        furthest_step: task.furthest_step,
        warnings: &task.warnings,
        stop: rank.stop,
        status: rank.status,
    };
    let summary = train(&run, group, &mut |message| rank.messages.send(&message))?;
    Ok(if summary.stopped {
        ExitCode::Requeue
    } else {
        ExitCode::Done
    })
}

/// The page on which the launcher reads where this rank stands; one that nobody reads where it made none.
fn status_page() -> anyhow::Result<StatusPage> {
    if env::var_os(names::STATUS_FD).is_none() {
        return Ok(StatusPage::private());
    }
    let page = inherited(names::STATUS_FD, OpenOptions::new().read(true).write(true))?;
    let memory = SharedMemory::from_fd(OwnedFd::from(page))?;
    let words = SharedWords::of(&memory, StatusPage::WORDS)?;
    Ok(StatusPage::new(Arc::new(words)))
}

/// Tells the launcher which collectives this rank is in.
#[derive(Debug)]
struct Tells(StatusPage);

impl Witness for Tells {
    fn begun(&self, call: &Call) {
        let Self(page) = self;
        page.call_begun(call.sequence, call.operation.name(), call.bytes() as u64);
    }

    fn completed(&self, sequence: u64) {
        self.0.call_completed(sequence);
    }
}

fn run_bench(
    task: &BenchTask,
    compute: &Compute,
    group: &mut dyn ProcessGroup,
    messages: &Messages,
) -> Result<ExitCode, TrainError> {
    let measured = Bench {
        plan: &task.plan,
        compute,
        vocab_size: task.vocab_size,
        warmup: task.warmup,
        steps: task.steps,
        products: task.products,
        communication: task.communication,
        link: task.link,
    };
    let report = bench(&measured, group)?;
    if group.rank() == 0 {
        messages.send(&WorkerMessage::Bench(Box::new(report)));
    }
    Ok(ExitCode::Done)
}

fn run_trace(
    task: &TraceTask,
    compute: Compute,
    group: &mut dyn ProcessGroup,
    messages: &Messages,
) -> Result<ExitCode, TrainError> {
    let trace = Trace {
        dir: &task.dir,
        compute,
        recompute: task.recompute,
        parallel: task.parallel.clone(),
    };
    let report = replay(&trace, group)?;
    if group.rank() == 0 {
        messages.send(&WorkerMessage::Trace(report));
    }
    Ok(ExitCode::Done)
}

fn run_operators(compute: Compute, messages: &Messages) -> Result<ExitCode, TrainError> {
    let mut findings = Vec::new();
    let setting = conformance::Setting::new(compute.device, compute.numbers);
    let cases = conformance::cases().into_iter();
    for case in cases.filter(|case| case.applies(&setting)) {
        findings.extend(
            case.run(&setting)?
                .into_iter()
                .map(|finding| OperatorFinding {
                    operator: finding.operator.to_owned(),
                    case: finding.case.to_owned(),
                    result: finding.result.to_owned(),
                    error: finding.error,
                    bound: finding.bound,
                }),
        );
    }
    messages.send(&WorkerMessage::Operators(OperatorsReport { findings }));
    Ok(ExitCode::Done)
}

fn verify_collectives(
    device: &Device,
    transport: &str,
    group: &mut dyn ProcessGroup,
    messages: &Messages,
) -> Result<ExitCode, TrainError> {
    let make = |dtype, len| {
        device
            .zeroed(dtype, len)
            .map_err(|error| MemoryError::Device {
                action: "allocating",
                bytes: len * dtype.size_in_bytes(),
                why: error.to_string(),
            })
    };
    let setting = collectives::Setting {
        make: &make,
        in_rank_order: device.facts().is_none(),
    };
    let mut findings = Vec::new();
    for case in collectives::cases() {
        let wrong = case.run(group, &setting).map_err(|error| match error {
            collectives::CaseError::Comm(error) => TrainError::from(error),
            collectives::CaseError::Memory(error) => TrainError::from(error),
        })?;
        findings.push(CollectiveFinding {
            case: case.name.to_owned(),
            dtype: case.dtype.map(|dtype| dtype.to_string()),
            wrong,
        });
    }
    if group.rank() == 0 {
        messages.send(&WorkerMessage::VerifiedCollectives(CollectivesReport {
            transport: transport.to_owned(),
            findings,
        }));
    }
    Ok(ExitCode::Done)
}

/// Opens a file that the launcher left open for this process, by way of `/proc`: a descriptor's
/// number alone gives no safe claim to it.
fn inherited(name: &'static str, options: &OpenOptions) -> anyhow::Result<File> {
    let number = env::var(name)
        .map_err(|_| anyhow!("{name} is not set: workers are started by `cordee train`"))?;
    let number: u32 = number
        .parse()
        .with_context(|| format!("{name} is `{number}`, not a file descriptor"))?;
    options
        .open(format!("/proc/self/fd/{number}"))
        .with_context(|| format!("opening the file of {name}"))
}

/// The rank that an error lays at another's door: this one fell because that one failed or never came.
fn blamed(error: Option<&TrainError>) -> Option<usize> {
    let Some(TrainError::Comm(error)) = error else {
        return None;
    };
    let error = match error {
        CommError::Stuck { failure, .. } => failure,
        error => error,
    };
    match error {
        CommError::PeerFailed { peer, .. } | CommError::Unreachable { peer, .. } => Some(*peer),
        CommError::Timeout { missing, .. } => missing.first().copied(),
        _ => None,
    }
}

/// The way to the launcher.
pub(super) struct Messages {
    pipe: Mutex<File>,
    broken: AtomicBool,
}

impl Messages {
    fn open() -> Result<Self, Failure> {
        let pipe =
            inherited(names::MESSAGE_FD, OpenOptions::new().write(true)).map_err(Failure::usage)?;
        Ok(Self {
            pipe: Mutex::new(pipe),
            broken: AtomicBool::new(false),
        })
    }

    /// A launcher that is gone takes its workers with it, so a broken pipe is no news.
    pub(super) fn send(&self, message: &WorkerMessage) {
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        let mut pipe = self
            .pipe
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if pipe.write_all(message.to_line().as_bytes()).is_err() {
            self.broken.store(true, Ordering::Relaxed);
        }
    }
}
