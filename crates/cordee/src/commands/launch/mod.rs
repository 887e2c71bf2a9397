//! `cordee launch`: any program that is written for torchrun, one process per rank.

mod machines;
mod meeting;
mod options;
mod program;
mod show;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;
use cordee_launch::{Ending, FailureReport, Fate, Launch, Outcome, StopRequests, World};
use cordee_protocol::{ExitCode, WorkerEnvironment, names};
use fs_err as fs;

use self::{meeting::Place, options::Options, program::Program, show::Show};
use super::{
    nodes::{self, Crew, Nodes, Placed},
    ranks::stop_on_signals,
};
use crate::{
    args::{LaunchArgs, NodesArgs},
    failure::Failure,
};

/// The folder in which folders of logs are made when none is named.
const LOGS: &str = "cordee-logs";

/// How long processes may take to stop on request, as torchrun has it.
const GRACE: Duration = Duration::from_secs(30);

/// A job, ready to start.
struct Job {
    options: Options,
    program: Program,
    run_id: String,
    logs: PathBuf,
    /// This machine among the others.
    placed: Placed,
}

pub(crate) fn run(args: &LaunchArgs) -> Result<u8, Failure> {
    let of_process = |name: &str| std::env::var(name).ok();
    let mut options = Options::of(args, &of_process)?;
    let program = Program::find(args, options.module, options.no_python)?;
    let flags = NodesArgs {
        nnodes: args
            .nnodes
            .clone()
            .or_else(|| args.standalone.then(|| "1".to_owned())),
        node_rank: args.node_rank.clone(),
        // What one machine understands by it is not for launchers.
        rdzv_endpoint: args.rdzv_endpoint.clone().filter(|_| args.nnodes.is_some()),
        rdzv_id: args.rdzv_id.clone(),
    };
    let placed = nodes::place(&flags, &program.name, Path::new(LOGS))?;
    let endpoint = placed.nodes.as_ref().and_then(|it| it.endpoint.as_ref());
    if let Some((_, port)) = endpoint {
        // Launchers meet there; the first process listens elsewhere.
        options.place.leave(*port);
    }
    let leads = placed.nodes.as_ref().is_none_or(Nodes::leads);
    let (logs, name) = if leads {
        logs(options.log_dir.clone(), &program.name)?
    } else {
        (PathBuf::new(), String::new())
    };
    let job = Job {
        run_id: options.run_id.clone().unwrap_or(name),
        logs,
        program,
        options,
        placed,
    };
    let mut show = Show::new();
    for remark in job.options.remarks.iter().chain(&job.placed.remarks) {
        show.console().note(remark);
    }
    let stop = stop_on_signals()?;
    let ended = if leads {
        job.lead(&mut show, &stop)
    } else {
        job.follow(&mut show, &stop)
    };
    show.console().finish();
    ended
}

impl Job {
    /// Sees the job to its end, on all machines.
    fn lead(&self, show: &mut Show, stop: &StopRequests) -> Result<u8, Failure> {
        let Some(nodes) = &self.placed.nodes else {
            return self.until_it_ends(None, show, stop);
        };
        let workers = self.options.processes;
        let mut crew = Crew::start(nodes, self.terms(), workers, self.fingerprint())?;
        let waiting = format!("waiting for nodes at {}", crew.addresses().join(", "));
        show.console().note(&waiting);
        let ended = self.until_it_ends(Some(&mut crew), show, stop);
        match &ended {
            Ok(code) => crew.finish(*code, "the job has ended"),
            Err(failure) => crew.finish(failure.code, &failure.to_string()),
        }
        ended
    }

    /// One attempt after the other, until one succeeds or no further may be made.
    fn until_it_ends(
        &self,
        mut crew: Option<&mut Crew>,
        show: &mut Show,
        stop: &StopRequests,
    ) -> Result<u8, Failure> {
        let attempts = self.options.max_restarts + 1;
        let mut attempt = 1;
        loop {
            let mut place = self.options.place.choose()?;
            if place.is_taken() {
                show.console().warning(&format!(
                    "somebody listens at port {} already; without --master-port a free one is chosen",
                    place.port
                ));
            }
            let mut world = World::of_one_node(self.options.processes);
            let mut parts = Vec::new();
            if let Some(crew) = &mut crew {
                let Some(found) = self.gather(crew, attempt, &mut place, stop)? else {
                    let console = show.console();
                    console.note("stopped on request, before all nodes were there");
                    return Ok(ExitCode::Requeue.code());
                };
                (world, parts) = found;
            }
            show.console()
                .note(&self.first_line(attempt, &place, &world));
            let launch = self.launch(attempt, &place, world);
            let outcome = match &crew {
                None => cordee_launch::run(&launch, show, stop)
                    .map_err(|error| Failure::new(ExitCode::Environment, error))?,
                Some(crew) => {
                    crew.see_through(parts, (&launch, show), stop, (&Vec::new, &|_| ()))?
                }
            };
            let report = match outcome {
                Outcome::Done => return Ok(ExitCode::Done.code()),
                Outcome::Stopped => {
                    show.console()
                        .note("stopped on request, to be started again");
                    return Ok(ExitCode::Requeue.code());
                }
                Outcome::Interrupted => {
                    let code = Outcome::Interrupted.exit_code();
                    return Err(Failure::with_code(code, anyhow!("interrupted")));
                }
                Outcome::Failed(report) => report,
            };
            let in_vain = self.options.max_restarts > 0 && !may_help(&report);
            if attempt == attempts || in_vain {
                let failure = Failure::with_code(report.exit_code, anyhow!("{}", report.render()));
                if in_vain {
                    show.console()
                        .note("not started again: by its exit code that would not help");
                }
                return Err(failure);
            }
            show.console().finish();
            show.console().warning(&report.render());
            attempt += 1;
        }
    }

    /// What is about to run, where its processes meet and where its output goes.
    fn first_line(&self, attempt: usize, place: &Place, world: &World) -> String {
        let count = world.size;
        let noun = if count == 1 { "process" } else { "processes" };
        let on = match world.nodes {
            1 => String::new(),
            nodes => format!(" on {nodes} machines"),
        };
        let again = match attempt {
            1 => String::new(),
            _ => format!("attempt {attempt} of {}: ", self.options.max_restarts + 1),
        };
        format!(
            "{again}{count} {noun} of `{}`{on} at {place}, logs in {}",
            self.program,
            self.logs.display()
        )
    }

    /// This machine's part of an attempt.
    fn launch(&self, attempt: usize, place: &Place, world: World) -> Launch {
        Launch {
            program: self.program.path.clone(),
            arguments: self.program.arguments.clone(),
            ranks: self.options.processes,
            world,
            own: Vec::new(),
            run_id: self.run_id.clone(),
            attempt,
            log_dir: self.logs.clone(),
            inherit: Vec::new(),
            environment: self.variables(),
            placement: Vec::new(),
            master: Some((place.address.clone(), place.port)),
            max_restarts: self.options.max_restarts,
            grace: Some(GRACE),
            devices: Vec::new(),
            pages: None,
            watch: None,
        }
    }

    /// What torchrun sets for programs of `PyTorch`, beside what any rank is told. What the user has set
    /// stays.
    fn variables(&self) -> Vec<(OsString, OsString)> {
        let any_rank = WorkerEnvironment::single_node(0, self.options.processes, &self.run_id);
        let mut variables = any_rank.torch_defaults(|name| std::env::var(name).ok());
        variables.push((names::ROLE_NAME, self.options.role.clone()));
        variables
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }
}

/// Whether another attempt may come further: no rank said that it would not.
fn may_help(report: &FailureReport) -> bool {
    let in_vain = |ending: Ending, codes: &[ExitCode]| {
        ending.exit_code().is_some_and(|code| codes.contains(&code))
    };
    let first = [
        ExitCode::Usage,
        ExitCode::Environment,
        ExitCode::DoNotRequeue,
    ];
    let others = report.others.iter().any(|other| match other.fate {
        Fate::Ended(ending) => in_vain(ending, &[ExitCode::DoNotRequeue]),
        Fate::StoppedByLauncher | Fate::Unkillable => false,
    });
    !in_vain(report.ending, &first) && !others
}

/// The folder of the logs, and a name for the job.
fn logs(given: Option<PathBuf>, program: &str) -> Result<(PathBuf, String), Failure> {
    let name = format!("{program}-{}", jiff::Zoned::now().strftime("%Y%m%d-%H%M%S"));
    if let Some(given) = given {
        return Ok((given, name));
    }
    let environment = |error: std::io::Error| {
        Failure::new(ExitCode::Environment, error)
            .with_hint("--log-dir names another directory for the logs")
    };
    fs::create_dir_all(LOGS).map_err(environment)?;
    let mut unique = name.clone();
    for number in 2.. {
        let path = PathBuf::from(LOGS).join(&unique);
        match fs::create_dir(&path) {
            Ok(()) => return Ok((path, unique)),
            // Another that began in the same second.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                unique = format!("{name}-{number}");
            }
            Err(error) => return Err(environment(error)),
        }
    }
    unreachable!("numbers do not end")
}
