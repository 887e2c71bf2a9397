//! Starting the ranks of a job and listening to them, whatever the job is.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow};
use cordee_launch::{Launch, Observer, Outcome, StopRequests, Stream, World};
use cordee_memory::SharedMemory;
use cordee_protocol::{ExitCode, WorkerMessage, names};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};

use super::played;
use crate::{
    console::{Console, ProgressMode},
    devices,
    failure::Failure,
    job::Job,
    worker_program,
};

/// Where the ranks' logs go.
pub(crate) struct Logs {
    pub(crate) dir: PathBuf,
    /// How often the run was started, this time included.
    pub(crate) attempt: usize,
}

/// Starts the ranks of `job` and sees them through to their end.
pub(crate) fn start(
    job: &Job,
    name: &str,
    logs: Logs,
    observer: &mut dyn Observer,
) -> Result<Outcome, Failure> {
    start_until(job, name, logs, observer, &stop_on_signals()?)
}

/// The same, until somebody stops it.
pub(crate) fn start_until(
    job: &Job,
    name: &str,
    logs: Logs,
    observer: &mut dyn Observer,
    stop: &StopRequests,
) -> Result<Outcome, Failure> {
    see_through(&launch_of(job, name, logs)?, observer, stop)
}

/// Runs a launch to its end.
pub(crate) fn see_through(
    launch: &Launch,
    observer: &mut dyn Observer,
    stop: &StopRequests,
) -> Result<Outcome, Failure> {
    cordee_launch::run(launch, observer, stop).map_err(|error| {
        let hint = error.hint();
        let failure = Failure::new(ExitCode::Environment, error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    })
}

/// The launch of `job`, of ranks that nobody watches for hangs.
pub(crate) fn launch_of(job: &Job, name: &str, logs: Logs) -> Result<Launch, Failure> {
    let environment = |error: anyhow::Error| Failure::new(ExitCode::Environment, error);
    let mut job = job.clone();
    let (mut inherit, mut own) = (Vec::new(), Vec::new());
    match &mut job.across {
        Some(across) if across.below.is_empty() => {
            own = played::start(across).map_err(environment)?;
        }
        _ => {
            let memory =
                SharedMemory::create("cordee-ranks").map_err(|error| environment(error.into()))?;
            let memory = memory
                .as_fd()
                .try_clone_to_owned()
                .context("sharing memory")
                .map_err(environment)?;
            inherit.push((names::SHARED_MEMORY_FD, memory));
        }
    }
    inherit.push((names::JOB_FD, job.to_fd().map_err(environment)?));
    let program = worker_program::find()?;
    let mut variables = program.environment;
    if devices::workers_per_gpu()? > 1 {
        variables.push(("NCCL_MULTI_RANK_GPU_ENABLE".into(), "1".into()));
    }
    Ok(Launch {
        program: program.path,
        arguments: vec!["worker".into()],
        ranks: job.world_size,
        world: World::of_one_node(job.world_size),
        own,
        run_id: run_id(name),
        attempt: logs.attempt,
        log_dir: logs.dir,
        inherit,
        environment: variables,
        placement: Vec::new(),
        master: None,
        max_restarts: 0,
        grace: None,
        devices: Vec::new(),
        pages: None,
        watch: None,
    })
}

/// Requests that signals make from here on.
pub(crate) fn stop_on_signals() -> Result<StopRequests, Failure> {
    let stop = StopRequests::new()
        .context("counting signals")
        .map_err(|error| Failure::new(ExitCode::Environment, error))?;
    count_signals(&stop)?;
    Ok(stop)
}

/// Runs a job that leaves nothing behind but what rank 0 reports: all of its messages, in order.
pub(crate) fn ask(job: &Job, name: &str) -> Result<Vec<WorkerMessage>, Failure> {
    let mut told = Vec::new();
    listen(job, name, &mut |message| told.push(message))?;
    Ok(told)
}

/// The same, each message when it comes.
pub(crate) fn listen(
    job: &Job,
    name: &str,
    hear: &mut dyn FnMut(WorkerMessage),
) -> Result<(), Failure> {
    let logs = tempfile::Builder::new()
        .prefix("cordee-logs-")
        .tempdir()
        .context("making a directory for logs")
        .map_err(|error| Failure::new(ExitCode::Environment, error))?;
    let mut listener = Listen {
        show: Show(Console::new(ProgressMode::Plain)),
        hear,
    };
    let place = Logs {
        dir: logs.path().to_owned(),
        attempt: 1,
    };
    let outcome = start(job, name, place, &mut listener)?;
    listener.show.0.finish();
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Failed(report) => {
            // The report names the logs.
            let _ = logs.keep();
            Err(Failure::with_code(
                report.exit_code,
                anyhow!("{}", report.render()),
            ))
        }
        Outcome::Stopped | Outcome::Interrupted => Err(Failure::with_code(
            Outcome::Interrupted.exit_code(),
            anyhow!("interrupted"),
        )),
    }
}

/// A name for the job that tells it from others: what it is called and when it began.
fn run_id(name: &str) -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    format!("{name}-{since}")
}

/// From here on a signal asks the ranks to stop at a step boundary; a Ctrl-C after that ends them at
/// once.
fn count_signals(stop: &StopRequests) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGHUP])
        .context("catching signals")
        .map_err(|error| Failure::new(ExitCode::Environment, error))?;
    let stop = stop.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            // A scheduler may send several kinds; only a person who insists wants it at once.
            if signal == SIGINT {
                stop.request();
            } else {
                stop.request_in_all(1);
            }
        }
    });
    Ok(())
}

/// Shows what the ranks tell.
pub(crate) struct Show(pub(crate) Console);

impl Observer for Show {
    fn message(&mut self, rank: usize, message: WorkerMessage) {
        self.0.message(rank, &message);
    }

    fn line(&mut self, rank: usize, _stream: Stream, line: &str) {
        self.0.log_line(rank, line);
    }

    fn lines_skipped(&mut self, rank: usize, lines: u64) {
        self.0.warning(&format!(
            "{lines} lines of rank {rank} are in its log alone"
        ));
    }

    fn log_failed(&mut self, rank: usize, path: &Path, error: &io::Error) {
        self.0.warning(&format!(
            "the log of rank {rank}, {}, cannot be written: {error}",
            path.display()
        ));
    }
}

/// Shows warnings and failures, and passes on what rank 0 reports.
struct Listen<'a> {
    show: Show,
    hear: &'a mut dyn FnMut(WorkerMessage),
}

impl Observer for Listen<'_> {
    fn message(&mut self, rank: usize, message: WorkerMessage) {
        match message {
            WorkerMessage::Warning { .. } | WorkerMessage::Failed(_) => {
                self.show.message(rank, message);
            }
            _ if rank == 0 => (self.hear)(message),
            _ => {}
        }
    }

    fn line(&mut self, rank: usize, stream: Stream, line: &str) {
        self.show.line(rank, stream, line);
    }

    fn lines_skipped(&mut self, rank: usize, lines: u64) {
        self.show.lines_skipped(rank, lines);
    }

    fn log_failed(&mut self, rank: usize, path: &Path, error: &io::Error) {
        self.show.log_failed(rank, path, error);
    }
}
