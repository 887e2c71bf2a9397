//! `cordee train`: check everything that can be checked, start the ranks, show what they tell.

mod attempts;
mod board;
mod ledger;
mod records;
mod watching;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, anyhow};
use cordee_config::{Loaded, Plan};
use cordee_data::Corpus;
use cordee_launch::Outcome;
use cordee_protocol::ExitCode;
use fs_err as fs;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    flag::register_conditional_shutdown,
};

use super::{config::load, prepare::prepare_data, ranks, resume::Course};
use crate::{
    args::{ConfigArgs, DeviceArg, TrainArgs},
    console::Console,
    devices,
    failure::Failure,
    job::threads_per_rank,
    run_dir::{RunDir, replace},
};
use attempts::Training;

pub(crate) fn run(args: &TrainArgs) -> Result<u8, Failure> {
    let begun = Instant::now();
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

    let preparing = Arc::new(AtomicBool::new(true));
    end_on_signals(&preparing)?;
    let stop = ranks::stop_on_signals()?;
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
    let training = Training {
        run: &run,
        plan: &plan,
        corpus: &corpus,
        last_step,
        stop,
        begun,
    };
    preparing.store(false, Ordering::Relaxed);
    training.attempts(course, attempt, console)
}

/// Ends the program at once if it is asked to stop while `preparing` is true: there is nothing to save.
fn end_on_signals(preparing: &Arc<AtomicBool>) -> Result<(), Failure> {
    let interrupted = i32::from(Outcome::Interrupted.exit_code());
    let requeue = i32::from(ExitCode::Requeue.code());
    for (signal, code) in [
        (SIGINT, interrupted),
        (SIGTERM, requeue),
        (SIGUSR1, requeue),
        (SIGHUP, requeue),
    ] {
        register_conditional_shutdown(signal, code, Arc::clone(preparing))
            .context("catching signals")
            .map_err(|error| Failure::new(ExitCode::Environment, error))?;
    }
    Ok(())
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
