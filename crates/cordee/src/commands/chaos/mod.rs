//! `cordee chaos`: does a run come through faults, and come out the same?
//!
//! A config is trained twice: once undisturbed, and once while processes are killed and stopped, disks
//! refuse and checkpoints are damaged. Everything is done from outside, to a `cordee train` like any
//! other, and judged by what that leaves on record.

mod checkpoint_faults;
mod compare;
mod disk;
mod hosts;
mod kind;
mod launcher;
mod needs;
mod page;
mod processes;
mod rank_faults;
mod records;
mod save_faults;
mod schedule;
mod strace;
mod trial;
mod work;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use cordee_protocol::ExitCode;
use fs_err as fs;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub(crate) use self::kind::FaultKind;
use self::{
    disk::SmallDisk,
    hosts::{Hosts, SILENCE},
    kind::{OF_HOSTS, OF_ONE_MACHINE},
    launcher::Training,
    needs::Skipped,
    page::{Report, Told, as_json, table},
    records::Records,
    schedule::{Fault, LEAST_SAVES, Shape},
    trial::{Halt, Pace, Trial, Verdict},
    work::WorkDir,
};
use crate::{
    args::{ChaosArgs, ConfigArgs},
    commands::config::load,
    console::{Console, ProgressMode, bytes},
    devices,
    failure::Failure,
    machine,
};

/// Saves of a run, where the config leaves that open: few enough steps are done again after a fault.
const SAVES: u64 = 32;

/// Least steps from save to save.
const LEAST_EVERY: u64 = 5;

/// Checkpoints that the small disk has room for: those that are kept, one that is written, one that was set
/// aside, and what a launcher wants to be free at its start.
const ROOM: u64 = 8;

/// What an interrupted command ends with, as a shell has it.
const INTERRUPTED: u8 = 130;

pub(crate) fn run(args: &ChaosArgs) -> Result<u8, Failure> {
    let wanted = wanted(args)?;
    if let Some(missing) = args.hosts.and_then(|_| hosts::missing()) {
        let error = anyhow!("hosts cannot be made here: {missing}");
        return Err(Failure::new(ExitCode::Environment, error).with_hint(
            "run it as root where iproute2 and util-linux are installed, or without --hosts",
        ));
    }
    if !args.own_mounts && wanted.iter().any(|kind| kind.needs_mount()) {
        needs::enter_own_mounts();
    }
    let environment = |error: anyhow::Error| Failure::new(ExitCode::Environment, error);
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("catching signals")
            .map_err(environment)?;
    }
    processes::adopt_orphans()
        .context("becoming the parent of what launchers leave")
        .map_err(environment)?;
    let (sets, shape) = overrides(args)?;
    let work = WorkDir::new(args.dir.as_deref())?;
    let experiment = Experiment {
        args,
        sets,
        shape,
        work,
        interrupted,
    };
    experiment.conclude(&wanted)
}

/// The kinds to choose from, each once.
fn wanted(args: &ChaosArgs) -> Result<Vec<FaultKind>, Failure> {
    let all = if args.hosts.is_some() {
        &OF_HOSTS[..]
    } else {
        &OF_ONE_MACHINE
    };
    if let Some(other) = args.only.iter().find(|kind| !all.contains(kind)) {
        let error = anyhow!(
            "{} is no fault of a run {}",
            other.name(),
            args.hosts.map_or("on one machine", |_| "on several hosts")
        );
        return Err(Failure::usage(error).with_hint(if args.hosts.is_some() {
            "leave it out of --only, or leave out --hosts"
        } else {
            "leave it out of --only, or say --hosts 2"
        }));
    }
    let all = all.iter().copied();
    Ok(all
        .filter(|kind| args.only.is_empty() || args.only.contains(kind))
        .collect())
}

/// What is changed in the config, for both runs and without a change of results, and what comes of it.
fn overrides(args: &ChaosArgs) -> Result<(Vec<String>, Shape), Failure> {
    let hosts = args.hosts.unwrap_or(1);
    if !args.workers.is_multiple_of(hosts) {
        let error = anyhow!(
            "{} workers cannot be dealt out evenly to {hosts} hosts",
            args.workers
        );
        return Err(Failure::usage(error).with_hint("set --workers to a multiple of --hosts"));
    }
    let mut sets = args.config.sets.clone();
    sets.push(format!("parallel.workers={}", args.workers));
    let with = |sets: &[String]| {
        let config = args.config.config.clone();
        let sets = sets.to_vec();
        devices::plan(&load(&ConfigArgs { config, sets })?)
    };
    let steps = with(&sets)?.steps;
    // What the user sets is what the user wants.
    if !sets.iter().any(|set| set.starts_with("checkpoint.every")) {
        let every = (steps / SAVES).max(LEAST_EVERY);
        sets.push(format!("checkpoint.every={every}"));
    }
    sets.extend([
        "checkpoint.keep=3".to_owned(),
        "launch.step_timeout=\"2s\"".to_owned(),
        "launch.max_restarts=1000".to_owned(),
    ]);
    let every = with(&sets)?.config.checkpoint.every.0;
    if every == 0 || steps < LEAST_SAVES * every {
        let error = anyhow!(
            "{steps} steps with a checkpoint every {every} leave no room for faults: at least {LEAST_SAVES} checkpoints are wanted"
        );
        return Err(
            Failure::usage(error).with_hint("set train.steps higher, or checkpoint.every lower")
        );
    }
    let shape = Shape {
        steps,
        every,
        ranks: args.workers,
        hosts,
    };
    Ok((sets, shape))
}

/// Both runs.
struct Experiment<'a> {
    args: &'a ChaosArgs,
    sets: Vec<String>,
    shape: Shape,
    work: WorkDir,
    interrupted: Arc<AtomicBool>,
}

impl Experiment<'_> {
    /// Does it, tells of it, and leaves behind what is worth a look.
    fn conclude(&self, wanted: &[FaultKind]) -> Result<u8, Failure> {
        let mut console = Console::new(ProgressMode::Plain);
        let report = match self.report(wanted, &mut console) {
            Ok(Ok(report)) => report,
            Ok(Err(Halt::Interrupted)) => {
                self.work.remove();
                return Err(Failure::with_code(INTERRUPTED, anyhow!("interrupted")));
            }
            Ok(Err(Halt::GivenUp(why))) => {
                return Err(Failure::new(ExitCode::Failed, anyhow!("{why}"))
                    .with_hint(format!("{} is kept", self.work.path().display())));
            }
            Err(failure) => {
                self.work.remove();
                return Err(failure);
            }
        };
        Console::print_data(&if self.args.json {
            format!("{}\n", as_json(&report))
        } else {
            table(&report)
        });
        if report.passed() {
            if self.work.is_temporary() {
                self.work.remove();
            }
            return Ok(ExitCode::Done.code());
        }
        console.note(&format!(
            "both runs and what they printed are kept in {}",
            self.work.path().display()
        ));
        Ok(ExitCode::Failed.code())
    }

    /// Both runs, and all there is to tell of them.
    fn report(
        &self,
        wanted: &[FaultKind],
        console: &mut Console,
    ) -> Result<Result<Report, Halt>, Failure> {
        let (mut kinds, mut skipped) = needs::sort(wanted);
        // Before anything takes time.
        self.faults(&kinds, &skipped)?;
        console.note(&format!(
            "training {} steps undisturbed (ranks: {})",
            self.shape.steps, self.shape.ranks
        ));
        let begun = Instant::now();
        let pace = match self.undisturbed() {
            Ok(pace) => pace,
            Err(halt) => return Ok(Err(halt)),
        };
        let undisturbed_s = begun.elapsed().as_secs_f64();
        fit_into_memory(pace.checkpoint_bytes, &mut kinds, &mut skipped);
        let faults = self.faults(&kinds, &skipped)?;
        let mut report = Report {
            seed: self.args.seed,
            hosts: self.args.hosts,
            strict: self.args.strict,
            skipped,
            undisturbed_s,
            not_injected: faults.len(),
            ..Report::default()
        };
        let mounts = kinds.iter().any(|kind| kind.needs_mount());
        let mut trial = self.trial(pace, mounts)?;
        console.note("the same under faults");
        let begun = Instant::now();
        let disturbed = disturb(&mut trial, &faults, &mut report, console);
        report.disturbed_s = begun.elapsed().as_secs_f64();
        if let Err(left) = trial.end() {
            report.left.push(left);
        }
        if let Some(hosts) = trial.hosts.take() {
            report.left.extend(hosts.close());
        }
        match disturbed {
            Ok(()) => self.compare(&mut trial, &mut report),
            Err(Halt::GivenUp(why)) => report.given_up = Some(why),
            Err(Halt::Interrupted) => return Ok(Err(Halt::Interrupted)),
        }
        let (attempts, ledger) = trial.records.ledger();
        report.attempts = attempts;
        report.effective = (attempts > 0 && ledger.total_s() > 0.0).then(|| ledger.effective());
        if let Some(disk) = trial.disk.take()
            && !(self.work.is_temporary() && report.passed())
        {
            disk.keep()
                .map_err(|error| Failure::new(ExitCode::Environment, error))?;
        }
        Ok(Ok(report))
    }

    /// The faults that are to come, of these kinds.
    fn faults(&self, kinds: &[FaultKind], skipped: &[Skipped]) -> Result<Vec<Fault>, Failure> {
        if kinds.is_empty() {
            let mut why: Vec<_> = skipped.iter().map(|it| it.why.as_str()).collect();
            why.dedup();
            return Err(Failure::new(
                ExitCode::Environment,
                anyhow!("no fault can be injected here: {}", why.join("; ")),
            ));
        }
        schedule::draw(self.args.seed, self.args.faults, kinds, self.shape).map_err(|why| {
            Failure::usage(anyhow!(why)).with_hint("ask for fewer --faults, or for other kinds")
        })
    }

    fn training(&self, name: &str) -> Training {
        Training {
            config: self.args.config.config.clone(),
            sets: self.sets.clone(),
            run_dir: self.work.path().join(name),
            log: self.work.log(name),
        }
    }

    /// Trains without faults, and returns how long that takes.
    fn undisturbed(&self) -> Result<Pace, Halt> {
        let training = self.training("undisturbed");
        let started_at = cordee_metrics::unix_time();
        let mut trial = Trial {
            // There is nothing to compare with yet: as long as it takes.
            pace: Pace {
                step: Duration::from_hours(1),
                start: Duration::from_hours(1),
                checkpoint_bytes: 0,
            },
            shape: self.shape,
            records: Records::of(&training.run_dir),
            strace_log: self.work.log("strace"),
            disk: None,
            launcher: None,
            hosts: None,
            interrupted: Arc::clone(&self.interrupted),
            hit: (0, Instant::now()),
            training,
        };
        let run = trial.start(false).and_then(|()| trial.finish());
        let left = trial.end();
        match run {
            Err(Halt::GivenUp(why)) => {
                return Err(Halt::GivenUp(format!(
                    "the undisturbed run failed: {why}\n{}",
                    trial.training.last_lines()
                )));
            }
            run => run?,
        }
        left.map_err(|left| format!("the undisturbed run left behind: {left}"))?;
        let path = self.work.undisturbed();
        let steps = cordee_metrics::read_steps(&path.join(cordee_metrics::METRICS_FILE))
            .map_err(|error| error.to_string())?;
        let [first, .., last] = &steps[..] else {
            return Err("the undisturbed run has no steps on record".into());
        };
        let newest = trial.records.committed();
        let newest = newest
            .first()
            .ok_or("the undisturbed run has no checkpoint")?;
        Ok(Pace {
            step: seconds((last.time - first.time) / (steps.len() - 1) as f64),
            start: seconds(first.time - started_at),
            checkpoint_bytes: cordee_checkpoint::Checkpoint::open(newest)
                .map_err(|error| error.to_string())?
                .bytes(),
        })
    }

    /// The run that is to be disturbed, not yet started.
    fn trial(&self, pace: Pace, on_small_disk: bool) -> Result<Trial, Failure> {
        let mut training = self.training("disturbed");
        let environment = |error| Failure::new(ExitCode::Environment, error);
        let hosts = match self.args.hosts {
            None => None,
            Some(count) => {
                training.sets.extend([
                    format!("parallel.workers={}", self.shape.ranks_per_host()),
                    format!("launch.node_timeout=\"{}s\"", SILENCE.as_secs()),
                ]);
                Some(Hosts::make(count, &self.work.hosts()).map_err(environment)?)
            }
        };
        let checkpoints = training.run_dir.join("checkpoints");
        let mount = || -> anyhow::Result<SmallDisk> {
            fs::create_dir_all(&checkpoints)?;
            SmallDisk::mount(&checkpoints, room(pace.checkpoint_bytes))
                .context("mounting a small disk for checkpoints")
        };
        let disk = on_small_disk.then(mount).transpose().map_err(environment)?;
        Ok(Trial {
            shape: self.shape,
            pace,
            disk,
            records: Records::of(&training.run_dir),
            strace_log: self.work.log("strace"),
            launcher: None,
            hosts,
            interrupted: Arc::clone(&self.interrupted),
            hit: (0, Instant::now()),
            training,
        })
    }

    /// Holds the results of both runs against each other.
    fn compare(&self, trial: &mut Trial, report: &mut Report) {
        let (expected, found) = (self.work.undisturbed(), self.work.disturbed());
        let mut wrong = Vec::new();
        let mut kept = |compared: anyhow::Result<compare::Compared>| {
            compared
                .map_err(|error| wrong.push(format!("{error:#}")))
                .ok()
        };
        report.steps = kept(compare::steps(&expected, &found));
        report.tensors = kept(compare::tensors(&expected, &found));
        if !wrong.is_empty() {
            report.given_up = Some(format!("nothing to compare: {}", wrong.join("; ")));
        }
        let half = trial.records.half_written();
        let half = half.into_iter().map(|path| path.display().to_string());
        report.left.extend(half);
    }
}

/// Trains under these faults to the end.
fn disturb(
    trial: &mut Trial,
    faults: &[Fault],
    report: &mut Report,
    console: &mut Console,
) -> Result<(), Halt> {
    trial.start(false)?;
    for fault in faults {
        let suffered = trial.suffer(fault);
        let (verdict, halt) = match suffered {
            Ok(verdict) => (verdict, None),
            Err(Halt::Interrupted) => return Err(Halt::Interrupted),
            Err(Halt::GivenUp(why)) => {
                let verdict = Verdict {
                    step: trial.records.last_step().map_or(0, |(step, _)| step),
                    words: why,
                    right: false,
                    recovery_s: None,
                };
                (verdict, Some("the run was given up".into()))
            }
        };
        console.note(&format!(
            "fault {} of {}, {} at step {}: {}",
            fault.number,
            faults.len(),
            fault.kind.name(),
            verdict.step,
            verdict.words
        ));
        report.not_injected -= 1;
        report.faults.push(Told {
            fault: fault.clone(),
            verdict,
        });
        if let Some(halt) = halt {
            return Err(halt);
        }
    }
    trial.finish()
}

/// Bytes of the small disk.
fn room(checkpoint: u64) -> u64 {
    // What is beside the shards is small, but for a very small model not beside them.
    ROOM * (checkpoint + checkpoint / 4 + (1 << 20))
}

/// A disk in memory must leave memory to train in.
fn fit_into_memory(checkpoint: u64, kinds: &mut Vec<FaultKind>, skipped: &mut Vec<Skipped>) {
    let Some(memory) = machine::memory() else {
        return;
    };
    let needed = room(checkpoint);
    if needed <= memory / 2 {
        return;
    }
    let (kept, too_large): (Vec<_>, Vec<_>) = kinds.iter().partition(|kind| !kind.needs_mount());
    *kinds = kept;
    skipped.extend(too_large.into_iter().map(|kind| Skipped {
        kind,
        why: format!(
            "a small disk for these checkpoints takes {}, and there are {} of memory",
            bytes(needed),
            bytes(memory)
        ),
    }));
}

fn seconds(time: f64) -> Duration {
    Duration::try_from_secs_f64(time).unwrap_or_default()
}
