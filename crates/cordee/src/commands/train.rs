//! `cordee train`: check everything that can be checked, start the ranks, show what they tell.

use std::{env, io::Write as _, path::Path, thread};

use anyhow::{Context, anyhow};
use cordee_config::{Loaded, Plan};
use cordee_data::Corpus;
use cordee_launch::{FailureReport, Outcome};
use cordee_metrics::{EVENTS_FILE, Event, EventKind, append_event};
use cordee_protocol::ExitCode;
use fs_err as fs;

use super::{
    config::load,
    prepare::prepare_data,
    ranks::{self, Logs, Show},
    resume::Course,
};
use crate::{
    args::{ConfigArgs, DeviceArg, TrainArgs},
    console::Console,
    devices,
    failure::Failure,
    job::{Job, Task, TrainTask, threads_per_rank},
    run_dir::RunDir,
};

pub(crate) fn run(args: &TrainArgs) -> Result<u8, Failure> {
    let loaded = load(&with_flags(args))?;
    let mut plan = devices::plan(&loaded)?;
    plan.config
        .make_paths_absolute(&env::current_dir().context("finding the current directory")?);
    let last_step = args.max_steps.map_or(plan.steps, |max| max.min(plan.steps));
    let (run, named) = match &args.resume {
        None => (RunDir::fresh(args.run_dir.as_deref(), loaded.name())?, None),
        Some(resume) => RunDir::resumed(args.run_dir.as_deref(), resume, loaded.name())?,
    };
    if args.dry_run {
        check_paths(&plan)?;
        Console::print_data(&describe(&plan, &run, last_step));
        return Ok(ExitCode::Done.code());
    }

    let mut console = Console::new(args.progress);
    let corpus = prepare_data(&plan, &mut console)?;
    if let Some(rows) = plan.config.model.vocab_size
        && rows < corpus.vocab_size()
    {
        let error = anyhow!(
            "model.vocab_size is {rows}, and the tokenizer has {} tokens",
            corpus.vocab_size()
        );
        return Err(Failure::usage(error)
            .with_hint("a model that begins from weights needs the tokenizer they were trained with: set data.tokenizer"));
    }
    let _lock = run.lock()?;
    let mut course = Course::default();
    if run.has_run() {
        if args.resume.is_none() {
            return Err(run.occupied());
        }
        course = Course::find(&run, named, &plan, &corpus)?;
        course.take(&run)?;
    } else if args.resume.is_some() {
        course.warnings.push(format!(
            "there is no run in {} yet, starting one",
            run.path().display()
        ));
    }
    for warning in &course.warnings {
        console.warning(warning);
    }
    let attempt = run.next_attempt();
    write_run_dir(&run, &loaded, &plan, &corpus, attempt)?;
    plan.config
        .parallel
        .threads
        .get_or_insert(threads_per_rank(plan.world_size));
    let job = Job::of(
        &plan.clone(),
        Task::Train(TrainTask {
            plan,
            corpus: corpus.entry().to_owned(),
            run_dir: run.path().to_owned(),
            resume: course.checkpoint,
            last_step,
            warnings: course.warnings,
        }),
    );
    launch(&job, &run, attempt, console)
}

/// A flag is one more `--set`, so that there is one way by which values change.
fn with_flags(args: &TrainArgs) -> ConfigArgs {
    let mut sets = args.config.sets.clone();
    sets.extend(args.seed.map(|seed| format!("train.seed={seed}")));
    sets.extend(args.device.map(DeviceArg::as_set));
    ConfigArgs {
        config: args.config.config.clone(),
        sets,
    }
}

/// That there is something to read, as far as a look can tell.
fn check_paths(plan: &Plan) -> Result<(), Failure> {
    let data = &plan.config.data;
    for path in data
        .sources
        .iter()
        .map(|source| &source.path)
        .chain(&data.tokenizer)
    {
        fs::metadata(path).map_err(Failure::usage)?;
    }
    Ok(())
}

fn describe(plan: &Plan, run: &RunDir, last_step: u64) -> String {
    format!(
        "{}\n# {} ranks x micro-batch {} x {} accumulation steps = {} sequences = {} tokens a step\n\
         # {last_step} steps in {}\n",
        plan.config.to_toml(),
        plan.world_size,
        plan.micro_batch_size,
        plan.accumulation_steps,
        plan.global_batch_size,
        plan.tokens_per_step,
        run.path().display(),
    )
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
        let write = |name: &str, text: &str| replace(&run.path().join(name), text.as_bytes());
        replace(&run.tokenizer(), &fs::read(corpus.tokenizer_path())?)?;
        replace(
            &run.tokenizer_config(),
            &fs::read(corpus.tokenizer_config_path())?,
        )?;
        write("config.source.toml", loaded.source_text())?;
        let overrides: String = loaded
            .sets()
            .iter()
            .flat_map(|set| [set.as_str(), "\n"])
            .collect();
        write("overrides.txt", &overrides)?;
        write("env.json", &environment(plan, attempt)?)?;
        // Last: a directory with a config is a run.
        replace(&run.config(), plan.config.to_toml().as_bytes())
    };
    let context = || format!("preparing the run directory {}", run.path().display());
    write()
        .with_context(context)
        .map_err(|error| Failure::new(ExitCode::Environment, error))
}

/// Writes a file whole or not at all: a resumed run has one already, and must not lose it.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    Ok(())
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
        "device": plan.device,
        "gpus": devices::record(plan.device),
        "started": jiff::Zoned::now().to_string(),
        "command": env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>(),
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&facts)?))
}

fn launch(job: &Job, run: &RunDir, attempt: usize, console: Console) -> Result<u8, Failure> {
    let name = run.path().file_name().unwrap_or_default();
    let logs = Logs {
        dir: run.logs(),
        attempt,
    };
    let mut show = Show(console);
    let outcome = ranks::start(job, &name.to_string_lossy(), logs, &mut show);
    let mut console = show.0;
    console.finish();
    match outcome? {
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
        Outcome::Failed(report) => {
            record_failure(run, &report, &mut console);
            Err(Failure::with_code(
                report.exit_code,
                anyhow!("{}", report.render()),
            ))
        }
    }
}

/// Leaves the verdict in the record of the run. The ranks are gone, and with them who else writes it.
fn record_failure(run: &RunDir, report: &FailureReport, console: &mut Console) {
    let failed = EventKind::Failed {
        rank: report
            .silent
            .as_ref()
            .map_or(report.rank, |silent| silent.rank),
        reason: report.render(),
    };
    let event = Event::now(report.last_step.unwrap_or(0), failed);
    if let Err(error) = append_event(run.path(), &event) {
        console.warning(&format!("the failure is not in {EVENTS_FILE}: {error}"));
    }
}
