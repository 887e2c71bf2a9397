//! `cordee doctor`: what this machine has to compute with, and what is missing.
//!
//! Nothing is changed and nothing computed; a check that cannot be made says so.

mod page;
mod report;

use std::{env, path::PathBuf, thread};

use cordee_protocol::ExitCode;
use rustix::{fs::statvfs, system::uname};

use self::report::{Driver, Library, Machine, Report, Worker};
use crate::{
    args::DoctorArgs,
    console::Console,
    gpus,
    libraries::{KNOWN, Known, Places, Search, known, version},
    machine, worker_program,
};

pub(crate) fn run(args: &DoctorArgs) -> u8 {
    let places = Places::of_this_process();
    let search = places.search();
    let worker = cfg!(feature = "cuda").then(worker);
    let files = match &worker {
        Some(Worker::Found { needs, .. }) => needs.as_slice(),
        _ => &[],
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cuda: cfg!(feature = "cuda"),
        machine: this_machine(),
        driver: match gpus::ask(&places) {
            Ok(driver) => Driver::Works(driver),
            Err(why) => Driver::Missing {
                why: why.to_string(),
            },
        },
        libraries: libraries(&search, files),
        searched: search
            .directories()
            .iter()
            .map(|directory| (directory.path.clone(), directory.origin.clone()))
            .collect(),
        worker,
    };
    Console::print_data(&if args.json {
        format!("{}\n", report.json())
    } else {
        page::page(&report)
    });
    if report.problems().is_empty() {
        ExitCode::Done.code()
    } else {
        ExitCode::Environment.code()
    }
}

fn worker() -> Worker {
    let found = worker_program::path().and_then(|path| {
        let needs = worker_program::needed(&path)?;
        Ok(Worker::Found { path, needs })
    });
    found.unwrap_or_else(|failure| Worker::Missing {
        why: failure.to_string(),
    })
}

/// What the worker's file names, and what else is known.
fn libraries(search: &Search, files: &[String]) -> Vec<Library> {
    let look = |file: &str, known: Option<&'static Known>, needed: bool| {
        let found = search.find(file);
        Library {
            file: file.to_owned(),
            title: known.map_or_else(|| file.to_owned(), |known| known.title.to_owned()),
            used_for: known.map_or("", |known| known.used_for),
            needed,
            version: found.as_ref().and_then(|found| version(&found.path)),
            found: found.map(|found| (found.path, found.origin)),
        }
    };
    // The worker may be of another release of CUDA than the one that is usual.
    let mut all: Vec<Library> = KNOWN
        .iter()
        .map(|one| {
            let named = files
                .iter()
                .find(|file| known(file).is_some_and(|it| it.stem == one.stem));
            let file = named.map_or(one.file, String::as_str);
            look(file, Some(one), named.is_some())
        })
        .collect();
    let unknown = files.iter().filter(|file| known(file).is_none());
    all.extend(unknown.map(|file| look(file, None, true)));
    all
}

fn this_machine() -> Machine {
    let uname = uname();
    let directory = env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    Machine {
        host: uname.nodename().to_string_lossy().into_owned(),
        system: format!(
            "{} {}",
            uname.sysname().to_string_lossy(),
            uname.release().to_string_lossy()
        ),
        processor: machine::processor(),
        avx512: machine::has_avx512(),
        cores: thread::available_parallelism().ok().map(usize::from),
        memory: machine::memory(),
        free_disk: statvfs(&directory)
            .ok()
            .map(|disk| disk.f_bavail * disk.f_frsize),
        directory,
    }
}
