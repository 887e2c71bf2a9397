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
    fs::File,
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
use cordee_launch::{HttpPage, Outcome, StopRequests, rendezvous::Fingerprint};
use cordee_protocol::ExitCode;
use fs_err as fs;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    flag::register_conditional_shutdown,
};

use super::{
    config::load,
    nodes::{self, Crew, Follow, Nodes, Placed},
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
    let start = Start {
        args,
        loaded: &loaded,
        placed: &placed,
        plan: &plan,
        plan_for: &plan_for,
        workers,
        last_step,
        begun,
        preparing,
        stop,
    };
    match &placed.nodes {
        Some(nodes) if !nodes.leads() => start.follow(nodes, console),
        _ => start.lead(console),
    }
}

/// A run, before anything of it is there.
struct Start<'a> {
    args: &'a TrainArgs,
    loaded: &'a Loaded,
    placed: &'a Placed,
    plan: &'a Plan,
    plan_for: &'a (dyn Fn(usize) -> Result<Plan, Failure> + Sync),
    /// Ranks of this node.
    workers: usize,
    last_step: u64,
    begun: Instant,
    /// Whether a signal ends the program at once.
    preparing: Arc<AtomicBool>,
    stop: StopRequests,
}

/// What the first node has ready before it meets any other.
struct Ready {
    run: RunDir,
    corpus: Corpus,
    course: Course,
    attempt: usize,
    _lock: File,
}

impl Start<'_> {
    /// Trains as the only node, or as the one that leads.
    fn lead(self, mut console: Console) -> Result<u8, Failure> {
        let ready = self.get_ready(&mut console).inspect_err(|failure| {
            if !self.is_led_by_another() {
                self.tell_others(failure);
            }
        })?;
        let (station, page, _served) = self
            .station(&ready.corpus, ready.run.path(), &mut console)
            .inspect_err(|failure| self.tell_others(failure))?;
        self.preparing.store(false, Ordering::Relaxed);
        let crew = match &self.placed.nodes {
            None => None,
            Some(nodes) => {
                let crew = Crew::start(
                    nodes,
                    self.placed.terms(self.plan),
                    self.workers,
                    self.fingerprint(&ready.corpus)?,
                )?;
                console.note(&format!(
                    "waiting for nodes at {}",
                    crew.addresses().join(", ")
                ));
                Some(crew)
            }
        };
        let training = Training {
            run: &ready.run,
            plan: self.plan,
            corpus: &ready.corpus,
            last_step: self.last_step,
            stop: self.stop,
            begun: self.begun,
            page,
            crew,
            plan_for: self.plan_for,
        };
        training.attempts(ready.course, ready.attempt, (station, console))
    }

    /// Does what the first node says.
    fn follow(self, nodes: &Nodes, mut console: Console) -> Result<u8, Failure> {
        let corpus = prepare_data(self.plan, &mut console)?;
        let (station, page, _served) =
            self.station(&corpus, Path::new(self.loaded.name()), &mut console)?;
        self.preparing.store(false, Ordering::Relaxed);
        let terms = self.placed.terms(self.plan);
        let (show, stop) = (Show(console), self.stop.clone());
        let mut trainee = Trainee::new(station, show, page, self.plan.device, stop);
        let work = (&mut trainee as &mut dyn Follow, &self.stop);
        let fingerprint = self.fingerprint(&corpus)?;
        let (code, text) = nodes::follow(nodes, &terms, self.workers, fingerprint, work)?;
        trainee.end(code, &text)
    }

    /// Prepares the data and the run directory, and finds out where the run goes on.
    fn get_ready(&self, console: &mut Console) -> Result<Ready, Failure> {
        let (args, plan) = (self.args, self.plan);
        let (run, named) = run_dir(args, self.loaded)?;
        let corpus = prepare_data(plan, console)?;
        check_vocabulary(plan, &corpus)?;
        let lock = run.lock()?;
        let mut course = Course::default();
        if run.has_run() {
            if args.resume.is_none() {
                return Err(run.occupied());
            }
            course = Course::find(&run, named, plan, &corpus)?;
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
        write_run_dir(&run, self.loaded, plan, &corpus, attempt)?;
        Ok(Ready {
            run,
            corpus,
            course,
            attempt,
            _lock: lock,
        })
    }

    /// What this node is to the run, and the page that it serves.
    fn station<'c>(
        &self,
        corpus: &'c Corpus,
        name: &Path,
        console: &mut Console,
    ) -> Result<(Station<'c>, Arc<AgentPage>, Option<HttpPage>), Failure> {
        let (station, told) = Station::new(self.plan, corpus, self.workers, self.placed)?;
        if let Some(told) = told {
            console.note(&told);
        }
        let name = name.file_name().unwrap_or_default().to_string_lossy();
        let (page, served) = AgentPage::open(&name, self.args.http)?;
        if let Some(served) = &served {
            console.note(&format!("served at http://{}", served.local_addr()));
        }
        Ok((station, page, served))
    }

    /// Whether another agent is at work on the run: then the nodes are its, and hear nothing from here.
    fn is_led_by_another(&self) -> bool {
        let run = match &self.args.run_dir {
            Some(path) => RunDir::meant(Some(path)),
            None => run_dir(self.args, self.loaded).map(|(run, _)| run),
        };
        run.is_ok_and(|run| run.is_locked() == Some(true))
    }

    /// Other nodes would wait for one that cannot lead.
    fn tell_others(&self, failure: &Failure) {
        let Some(nodes) = &self.placed.nodes else {
            return;
        };
        let nobody = Fingerprint::default();
        if let Ok(crew) = Crew::start(nodes, self.placed.terms(self.plan), 0, nobody) {
            crew.refuse_all(failure);
        }
    }

    /// What has to be alike on all nodes, or they would not compute the same run.
    fn fingerprint(&self, corpus: &Corpus) -> Result<Fingerprint, Failure> {
        // Nodes may have more ranks than others.
        let plan = (self.plan_for)(1).unwrap_or_else(|_| self.plan.clone());
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
