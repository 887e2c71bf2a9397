//! `cordee train`: check everything that can be checked, start the ranks, show what they tell.

use std::{
    env, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow};
use cordee_checkpoint as checkpoint;
use cordee_config::{Loaded, Plan};
use cordee_data::Corpus;
use cordee_launch::{Launch, Observer, Outcome, StopRequests, Stream};
use cordee_memory::SharedMemory;
use cordee_protocol::{ExitCode, WorkerMessage, names};
use fs_err as fs;
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};

use super::{config::load, prepare::prepare_data};
use crate::{
    args::{ConfigArgs, TrainArgs},
    console::Console,
    failure::Failure,
    job::{JOB_FD, Job},
    run_dir::RunDir,
};

/// Ranks on a machine without GPUs, where the config names no number.
pub(crate) const DEFAULT_WORKERS: usize = 2;

pub(crate) fn run(args: &TrainArgs) -> Result<u8, Failure> {
    let loaded = load(&with_seed(args))?;
    let mut plan = loaded.plan(DEFAULT_WORKERS).map_err(Failure::usage)?;
    plan.config
        .make_paths_absolute(&env::current_dir().context("finding the current directory")?);
    let last_step = args.max_steps.map_or(plan.config.train.steps.0, |max| {
        max.min(plan.config.train.steps.0)
    });
    if args.dry_run {
        Console::print_data(&describe(&plan, last_step));
        return Ok(ExitCode::Done.code());
    }

    let (run, named) = match &args.resume {
        None => (RunDir::fresh(args.run_dir.as_deref(), loaded.name())?, None),
        Some(resume) => RunDir::resumed(args.run_dir.as_deref(), resume, loaded.name())?,
    };
    let mut console = Console::new(args.progress);
    let corpus = prepare_data(&plan, &mut console)?;
    let mut warnings = Vec::new();
    let mut resume = None;
    if run.has_run() {
        warnings.extend(changes(&run, &plan)?);
        resume = resume_point(&run, named, &mut warnings)?;
    }
    for warning in &warnings {
        console.warning(warning);
    }
    let attempt = run.next_attempt();
    write_run_dir(&run, &loaded, &plan, &corpus, attempt)?;
    plan.config
        .parallel
        .threads
        .get_or_insert(threads_per_rank(plan.world_size));
    let job = Job {
        plan,
        corpus: corpus.entry().to_owned(),
        run_dir: run.path().to_owned(),
        resume,
        last_step,
        warnings,
    };
    launch(&job, &run, attempt, console)
}

/// `--seed` is one more `--set`, so that there is one way by which values change.
fn with_seed(args: &TrainArgs) -> ConfigArgs {
    let mut sets = args.config.sets.clone();
    sets.extend(args.seed.map(|seed| format!("train.seed={seed}")));
    ConfigArgs {
        config: args.config.config.clone(),
        sets,
    }
}

fn describe(plan: &Plan, last_step: u64) -> String {
    let config = &plan.config;
    format!(
        "{}\n# {} ranks x micro-batch {} x {} accumulation steps = {} sequences = {} tokens a step\n\
         # steps to run: {last_step}\n",
        config.to_toml(),
        plan.world_size,
        plan.micro_batch_size,
        plan.accumulation_steps,
        config.train.global_batch_size,
        plan.tokens_per_step,
    )
}

/// The checkpoint to go on from: the one named, or the newest valid one. What is passed over, and
/// what is left behind, goes to `warnings`.
fn resume_point(
    run: &RunDir,
    named: Option<PathBuf>,
    warnings: &mut Vec<String>,
) -> Result<Option<PathBuf>, Failure> {
    let failed = |error| Failure::new(ExitCode::Failed, error);
    if let Some(path) = named {
        let step = checkpoint::verify(&path).map_err(Failure::usage)?.step();
        for left in checkpoint::set_aside_newer(&run.checkpoints(), step).map_err(failed)? {
            warnings.push(format!(
                "going back to step {step}: a newer checkpoint is kept as {}",
                left.display()
            ));
        }
        return Ok(Some(path));
    }
    let found = checkpoint::newest_valid(&run.checkpoints()).map_err(failed)?;
    let rejected = found.rejected.iter();
    warnings.extend(rejected.map(|it| format!("{} is not used: {}", it.path.display(), it.reason)));
    if found.checkpoint.is_none() {
        warnings.push(format!(
            "{} has no checkpoint to go on from, starting at step 0",
            run.path().display()
        ));
    }
    Ok(found
        .checkpoint
        .map(|checkpoint| checkpoint.path().to_owned()))
}

/// What the config decides differently from the one the run began with.
fn changes(run: &RunDir, plan: &Plan) -> Result<Option<String>, Failure> {
    let before = cordee_config::load(&run.config(), &[]).map_err(Failure::usage)?;
    let before = before.plan(DEFAULT_WORKERS).map_err(Failure::usage)?;
    if before.fingerprint == plan.fingerprint {
        return Ok(None);
    }
    let changes = cordee_config::differences(&before.config, &plan.config).join(", ");
    Ok(Some(format!(
        "the config differs from the one this run began with, so it will not end as an undisturbed run would: {changes}"
    )))
}

fn write_run_dir(
    run: &RunDir,
    loaded: &Loaded,
    plan: &Plan,
    corpus: &Corpus,
    attempt: usize,
) -> Result<(), Failure> {
    let write = || -> anyhow::Result<()> {
        fs::create_dir_all(run.path())?;
        fs::create_dir_all(run.logs())?;
        fs::create_dir_all(run.checkpoints())?;
        fs::copy(corpus.tokenizer_path(), run.tokenizer())?;
        fs::write(run.path().join("config.source.toml"), loaded.source_text())?;
        let overrides: String = loaded
            .sets()
            .iter()
            .flat_map(|set| [set.as_str(), "\n"])
            .collect();
        fs::write(run.path().join("overrides.txt"), overrides)?;
        fs::write(run.path().join("env.json"), environment(plan, attempt)?)?;
        // Last: a directory with a config is a run.
        fs::write(run.config(), plan.config.to_toml())?;
        Ok(())
    };
    let context = || format!("preparing the run directory {}", run.path().display());
    write()
        .with_context(context)
        .map_err(|error| Failure::new(ExitCode::Environment, error))
}

/// The machine's cores, shared out.
fn threads_per_rank(world_size: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / world_size).max(1)
}

/// Facts of the machine and the program that a result may be questioned about later.
fn environment(plan: &Plan, attempt: usize) -> anyhow::Result<String> {
    let uname = rustix::system::uname();
    let facts = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": uname.nodename().to_string_lossy(),
        "kernel": format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
        "machine": uname.machine().to_string_lossy(),
        "cores": thread::available_parallelism().map_or(0, usize::from),
        "attempt": attempt,
        "ranks": plan.world_size,
        "threads_per_rank": plan.config.parallel.threads.unwrap_or(threads_per_rank(plan.world_size)),
        "started": jiff::Zoned::now().to_string(),
        "command": env::args().collect::<Vec<_>>(),
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&facts)?))
}

fn launch(job: &Job, run: &RunDir, attempt: usize, console: Console) -> Result<u8, Failure> {
    let environment = |error: anyhow::Error| Failure::new(ExitCode::Environment, error);
    let memory = SharedMemory::create("cordee-ranks").map_err(|error| environment(error.into()))?;
    let memory = memory
        .as_fd()
        .try_clone_to_owned()
        .context("sharing memory")
        .map_err(environment)?;
    let launch = Launch {
        program: env::current_exe()
            .context("finding this program")
            .map_err(environment)?,
        arguments: vec!["worker".into()],
        world_size: job.plan.world_size,
        run_id: run_id(run.path()),
        attempt,
        log_dir: run.logs(),
        inherit: vec![
            (names::SHARED_MEMORY_FD, memory),
            (JOB_FD, job.to_fd().map_err(environment)?),
        ],
        environment: Vec::new(),
        grace: None,
    };
    let stop = StopRequests::new()
        .context("counting signals")
        .map_err(environment)?;
    count_signals(&stop)?;
    let mut show = Show(console);
    let outcome = cordee_launch::run(&launch, &mut show, &stop);
    let mut console = show.0;
    console.finish();
    match outcome.map_err(|error| environment(error.into()))? {
        Outcome::Done => Ok(ExitCode::Done.code()),
        Outcome::Stopped => {
            console.note("stopped on request; go on with --resume");
            Ok(ExitCode::Requeue.code())
        }
        Outcome::Interrupted => Err(Failure::with_code(
            Outcome::Interrupted.exit_code(),
            anyhow!("interrupted at once; steps since the last checkpoint are lost"),
        )
        .with_hint("go on from the last checkpoint with --resume")),
        Outcome::Failed(report) => Err(Failure::with_code(
            report.exit_code,
            anyhow!("{}", report.render()),
        )),
    }
}

/// A name for the job that tells it from others: where it runs and when it began.
fn run_id(run_dir: &Path) -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    let name = run_dir
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    format!("{name}-{since}")
}

/// From here on a signal asks the ranks to stop at a step boundary; a second one ends them at once.
fn count_signals(stop: &StopRequests) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])
        .context("catching signals")
        .map_err(|error| Failure::new(ExitCode::Environment, error))?;
    let stop = stop.clone();
    thread::spawn(move || {
        for _ in signals.forever() {
            stop.request();
        }
    });
    Ok(())
}

/// Shows what the ranks tell.
struct Show(Console);

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
