//! `cordee launch`: any program that is written for torchrun, one process per rank.

mod meeting;
mod options;
mod program;
mod show;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::anyhow;
use cordee_launch::{Ending, FailureReport, Fate, Launch, Outcome, StopRequests, World};
use cordee_protocol::{ExitCode, WorkerEnvironment, names};
use fs_err as fs;

use self::{meeting::Place, options::Options, program::Program, show::Show};
use super::ranks::stop_on_signals;
use crate::{args::LaunchArgs, failure::Failure};

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
}

pub(crate) fn run(args: &LaunchArgs) -> Result<u8, Failure> {
    let of_process = |name: &str| std::env::var(name).ok();
    let options = Options::of(args, &of_process)?;
    let program = Program::find(args, options.module, options.no_python)?;
    let (logs, name) = logs(options.log_dir.clone(), &program.name)?;
    let job = Job {
        run_id: options.run_id.clone().unwrap_or(name),
        logs,
        program,
        options,
    };
    let mut show = Show::new();
    for remark in &job.options.remarks {
        show.console().note(remark);
    }
    let stop = stop_on_signals()?;
    let ended = job.until_it_ends(&mut show, &stop);
    show.console().finish();
    ended
}

impl Job {
    /// One attempt after the other, until one succeeds or no further may be made.
    fn until_it_ends(&self, show: &mut Show, stop: &StopRequests) -> Result<u8, Failure> {
        let attempts = self.options.max_restarts + 1;
        let mut attempt = 1;
        loop {
            let place = self.options.place.choose()?;
            if place.is_taken() {
                show.console().warning(&format!(
                    "somebody listens at port {} already; without --master-port a free one is chosen",
                    place.port
                ));
            }
            show.console().note(&self.first_line(attempt, &place));
            let report = match self.attempt(attempt, &place, show, stop)? {
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
    fn first_line(&self, attempt: usize, place: &Place) -> String {
        let count = self.options.processes;
        let noun = if count == 1 { "process" } else { "processes" };
        let again = match attempt {
            1 => String::new(),
            _ => format!("attempt {attempt} of {}: ", self.options.max_restarts + 1),
        };
        format!(
            "{again}{count} {noun} of `{}` at {place}, logs in {}",
            self.program,
            self.logs.display()
        )
    }

    fn attempt(
        &self,
        attempt: usize,
        place: &Place,
        show: &mut Show,
        stop: &StopRequests,
    ) -> Result<Outcome, Failure> {
        let launch = Launch {
            program: self.program.path.clone(),
            arguments: self.program.arguments.clone(),
            ranks: self.options.processes,
            world: World::of_one_node(self.options.processes),
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
        };
        cordee_launch::run(&launch, show, stop)
            .map_err(|error| Failure::new(ExitCode::Environment, error))
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
