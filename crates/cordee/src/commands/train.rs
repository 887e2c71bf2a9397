//! `cordee train`: check everything that can be checked, start the ranks, show what they tell.

mod agent_page;
mod attempts;
mod board;
mod ledger;
mod records;
mod station;
mod trainee;
mod watching;

use std::{
    env,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, anyhow};
use cordee_config::{DeviceKind, Loaded, Machine, Plan};
use cordee_data::Corpus;
use cordee_launch::{Outcome, rendezvous::Fingerprint};
use cordee_protocol::ExitCode;
use fs_err as fs;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    flag::register_conditional_shutdown,
};

use super::{
    config::load,
    nodes::{self, Crew},
    prepare::prepare_data,
    ranks::{self, Show},
    resume::Course,
};
use crate::{
    args::{ConfigArgs, DeviceArg, TrainArgs},
    console::Console,
    devices,
    failure::Failure,
    job::threads_per_rank,
    run_dir::{RUNS, RunDir, replace},
    worker_program,
};
use agent_page::AgentPage;
use attempts::Training;
use station::Station;
use trainee::Trainee;

pub(crate) fn run(args: &TrainArgs) -> Result<u8, Failure> {
    let begun = Instant::now();
    let mut loaded = load(&with_flags(args))?;
    let runs = args.run_dir.as_deref().and_then(Path::parent);
    let runs = runs.filter(|runs| !runs.as_os_str().is_empty());
    let placed = nodes::place(&args.nodes, loaded.name(), runs.unwrap_or(Path::new(RUNS)))?;
    if placed.one_worker {
        loaded.config.parallel.workers = Some(1);
    }
    let here = devices::plan(&loaded)?;
    let workers = here.world_size;
    let directory = env::current_dir().context("finding the current directory")?;
    let plan_for = |workers: usize| plan_for(&loaded, here.device, workers, &directory);
    // As many ranks as there will be if all nodes have as many as this one; every attempt counts them.
    let plan = plan_for(workers * placed.most)?;
    let last_step = args.max_steps.map_or(plan.steps, |max| max.min(plan.steps));
    if args.dry_run {
        let (run, _) = run_dir(args, &loaded)?;
        check_paths(&plan)?;
        Console::print_data(&describe(&plan, &run, last_step));
        return Ok(ExitCode::Done.code());
    }

    let preparing = Arc::new(AtomicBool::new(true));
    end_on_signals(&preparing)?;
    let stop = ranks::stop_on_signals()?;
    let mut console = Console::new(args.progress);
    for remark in &placed.remarks {
        console.note(remark);
    }
    let follows = placed.nodes.as_ref().is_some_and(|nodes| !nodes.leads());
    let dir = if follows {
        None
    } else {
        Some(run_dir(args, &loaded)?)
    };
    let corpus = prepare_data(&plan, &mut console)?;
    check_vocabulary(&plan, &corpus)?;
    let (station, told) = Station::new(&plan, &corpus, workers, &placed)?;
    if let Some(told) = told {
        console.note(&told);
    }
    let name = dir
        .as_ref()
        .map_or(Path::new(loaded.name()), |(run, _)| run.path());
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let (page, _served) = AgentPage::open(&name, args.http)?;
    if let Some(served) = &_served {
        console.note(&format!("served at http://{}", served.local_addr()));
    }
    let terms = placed.terms(&plan);
    let fingerprint = || fingerprint(&plan_for(1).unwrap_or_else(|_| plan.clone()), &corpus);
    let Some((run, named)) = dir else {
        preparing.store(false, Ordering::Relaxed);
        let nodes = placed.nodes.context("who follows is one of several")?;
        let mut trainee = Trainee::new(station, Show(console), page);
        let (code, text) = nodes::follow(
            &nodes,
            &terms,
            workers,
            fingerprint()?,
            (&mut trainee, &stop),
        )?;
        return trainee.end(code, &text);
    };
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
    let crew = match &placed.nodes {
        None => None,
        Some(nodes) => {
            let crew = Crew::start(nodes, terms, workers, fingerprint()?)?;
            console.note(&format!(
                "waiting for nodes at {}",
                crew.addresses().join(", ")
            ));
            Some(crew)
        }
    };
    let training = Training {
        run: &run,
        plan: &plan,
        corpus: &corpus,
        last_step,
        stop,
        begun,
        page,
        crew,
        plan_for: &plan_for,
    };
    preparing.store(false, Ordering::Relaxed);
    training.attempts(course, attempt, (station, console))
}

/// The run directory, and the checkpoint to go on from if one was named.
fn run_dir(args: &TrainArgs, loaded: &Loaded) -> Result<(RunDir, Option<PathBuf>), Failure> {
    match &args.resume {
        None => Ok((RunDir::fresh(args.run_dir.as_deref(), loaded.name())?, None)),
        Some(resume) => RunDir::resumed(args.run_dir.as_deref(), resume, loaded.name()),
    }
}

/// The plan for so many ranks, wherever they are.
fn plan_for(
    loaded: &Loaded,
    device: DeviceKind,
    workers: usize,
    directory: &Path,
) -> Result<Plan, Failure> {
    let mut loaded = loaded.clone();
    loaded.config.parallel.workers = Some(workers);
    let mut plan = loaded
        .plan(Machine { device, workers })
        .map_err(Failure::usage)?;
    plan.config.make_paths_absolute(directory);
    Ok(plan)
}

fn check_vocabulary(plan: &Plan, corpus: &Corpus) -> Result<(), Failure> {
    match plan.config.model.vocab_size {
        Some(rows) if rows < corpus.vocab_size() => {
            let error = anyhow!(
                "model.vocab_size is {rows}, and the tokenizer has {} tokens",
                corpus.vocab_size()
            );
            Err(Failure::usage(error)
                .with_hint("a model that begins from weights needs the tokenizer they were trained with: set data.tokenizer"))
        }
        _ => Ok(()),
    }
}

/// What has to be alike on all nodes, or they would not compute the same run.
fn fingerprint(plan: &Plan, corpus: &Corpus) -> Result<Fingerprint, Failure> {
    let name = |name: &str, value: String| (name.to_owned(), value);
    let mut entries = vec![
        name("the version", env!("CARGO_PKG_VERSION").to_owned()),
        name("the program's hash", worker_program::hash()?),
        name("the device", plan.device.name().to_owned()),
    ];
    entries.extend(cordee_config::decisive_values(&plan.config));
    entries.push(name(
        "the hash of the data",
        corpus.fingerprint().to_owned(),
    ));
    Ok(Fingerprint::new(entries))
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
