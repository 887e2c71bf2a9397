//! `cordee smoke`: is this machine fit to train on?
//!
//! Ranks measure, in processes that are ended when they do not answer; here their findings are held
//! against thresholds. What nobody could look at is unknown, and never passes for good.

mod catalog;
mod gpus;
mod page;
mod thresholds;
mod training;
mod verdict;
mod watch;

use std::{path::Path, time::Duration};

use cordee_config::{ComputePrecision, DeviceKind, ParallelConfig, PrecisionConfig};
use cordee_protocol::{Check, CheckReport, ExitCode, Finding};

use self::{
    page::{Counts, as_json, junit, table},
    thresholds::Thresholds,
    watch::{Expected, look},
};
use crate::{
    args::SmokeArgs,
    console::Console,
    devices,
    failure::Failure,
    gpus::{ask, xid},
    job::{Job, SmokePart, SmokeTask, Task, threads_per_rank},
    libraries::Places,
};

pub(crate) fn run(args: &SmokeArgs) -> Result<u8, Failure> {
    let thresholds = Thresholds::load(args.thresholds.as_deref()).map_err(|error| {
        Failure::usage(error).with_hint("configs/smoke/h100.toml shows what can be written")
    })?;
    // Before anything takes time: a report that cannot be written is no report.
    if let Some(path) = &args.junit {
        fs_err::write(path, "").map_err(Failure::usage)?;
    }
    let choice = args.device.choice();
    let ranks = match args.workers {
        Some(workers) => workers,
        None => devices::machine(choice)?.workers,
    };
    let machine = Machine {
        device: devices::device(choice, ComputePrecision::F32, ranks)?,
        ranks,
        args,
    };
    let driver = ask(&Places::of_this_process()).ok();
    let mut reports = machine.look()?;
    let names: Vec<&str> = match &driver {
        Some(driver) => {
            reports.extend(gpus::findings(driver, &xid::recent()));
            driver.gpus.iter().map(|gpu| gpu.name.as_str()).collect()
        }
        None => Vec::new(),
    };
    let judged = verdict::judge(&reports, thresholds.of(&names), ranks);
    if let Some(path) = &args.junit {
        let text = junit(&judged, args.strict);
        fs_err::write(path, text).map_err(|error| Failure::new(ExitCode::Environment, error))?;
    }
    Console::print_data(&if args.json {
        format!("{}\n", as_json(&judged, args.strict))
    } else {
        table(&judged, args.strict)
    });
    Ok(if Counts::of(&judged).passed(args.strict) {
        ExitCode::Done.code()
    } else {
        ExitCode::Environment.code()
    })
}

/// What is looked at.
struct Machine<'a> {
    device: DeviceKind,
    ranks: usize,
    args: &'a SmokeArgs,
}

impl Machine<'_> {
    /// Everything, one launch after the other.
    fn look(&self) -> Result<Vec<CheckReport>, Failure> {
        // One rank tells; if there are others, they have nothing to say.
        let from_one = |checks: &[Check]| {
            vec![Expected {
                of: None,
                checks: checks.to_vec(),
            }]
        };
        let (cpu, ranks) = (DeviceKind::Cpu, self.ranks);
        let (name, checks) = match self.device {
            DeviceKind::Cpu => ("rank", &Check::OF_PROCESSORS[..]),
            DeviceKind::Cuda => ("GPU", &Check::OF_GPU[..]),
        };
        let from_all: Vec<_> = (0..ranks)
            .map(|rank| Expected {
                of: Some(format!("{name} {rank}")),
                checks: checks.to_vec(),
            })
            .collect();
        let of_host = from_one(&Check::OF_HOST);
        let mut reports = self.launch(SmokePart::Host, cpu, 1, &of_host)?;
        reports.extend(self.launch(SmokePart::Devices, self.device, ranks, &from_all)?);
        // One rank alone has nobody to exchange anything with.
        if ranks > 1 {
            let links = from_one(&Check::OF_HOST_LINKS);
            reports.extend(self.launch(SmokePart::Links, cpu, ranks, &links)?);
        }
        if ranks > 1 && self.device == DeviceKind::Cuda {
            let links = from_one(&Check::OF_GPU_LINKS);
            reports.extend(self.launch(SmokePart::Links, self.device, ranks, &links)?);
        }
        let finding = self.training(&reports)?;
        reports.push(CheckReport {
            check: Check::Training,
            of: None,
            finding,
        });
        Ok(reports)
    }

    /// Starts so many ranks and hears what is expected of them.
    fn launch(
        &self,
        part: SmokePart,
        device: DeviceKind,
        ranks: usize,
        expected: &[Expected],
    ) -> Result<Vec<CheckReport>, Failure> {
        let job = Job {
            world_size: ranks,
            across: None,
            threads: threads_per_rank(ranks),
            timeout: ParallelConfig::default().timeout,
            device,
            precision: PrecisionConfig::default(),
            task: Task::Smoke(SmokeTask {
                part,
                dir: self.args.dir.clone(),
                storage_bytes: self.args.storage.0,
                most_seconds: self.patience().map(|most| most.as_secs_f64()),
            }),
        };
        Ok(look(&job, expected, self.patience())?.reports)
    }

    /// What the user gives a check at most.
    fn patience(&self) -> Option<Duration> {
        self.args.deadline.map(Duration::from_secs_f64)
    }

    /// Where storage does not work, a run would not tell anything new.
    fn training(&self, reports: &[CheckReport]) -> Result<Finding, Failure> {
        let storage = reports.iter().find(|it| it.check == Check::StorageBytes);
        let works = storage.is_some_and(|it| matches!(it.finding, Finding::Measured { .. }));
        if !works {
            return Ok(Finding::Unknown {
                why: "not tried: storage does not work".to_owned(),
            });
        }
        let work = match work_dir(&self.args.dir) {
            Ok(work) => work,
            Err(error) => {
                let why = error.to_string();
                return Ok(Finding::Unknown { why });
            }
        };
        training::train(work.path(), self.device, self.ranks, self.patience())
    }
}

/// A directory of its own, gone when it is dropped.
fn work_dir(dir: &Path) -> std::io::Result<tempfile::TempDir> {
    fs_err::create_dir_all(dir)?;
    let dir = fs_err::canonicalize(dir)?;
    tempfile::Builder::new()
        .prefix(".cordee-smoke-")
        .tempdir_in(dir)
}
