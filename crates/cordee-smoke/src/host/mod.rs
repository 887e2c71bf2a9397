//! The machine as its system tells of it: clocks, limits, processors, memory, room.

mod cpus;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cordee_protocol::{Check, Finding};
use rustix::{
    fs::{StatVfs, statvfs},
    process::{Resource, getrlimit},
};

use crate::{Probe, storage::measure_storage};

/// Seconds from 1970 to 2026: a clock that says less was never set.
const YEAR_2026: u64 = 1_767_225_600;

/// Seconds from 1970 to 2100.
const YEAR_2100: u64 = 4_102_444_800;

/// How long both clocks are watched.
const WATCHED: Duration = Duration::from_millis(100);

/// Everything about this machine that needs no device: facts first, then what is written and read in
/// `dir`, of which `storage_bytes` are.
pub fn host_probes(dir: &Path, storage_bytes: u64) -> Vec<Probe> {
    let room = dir.to_owned();
    vec![
        one(Check::Clock, clock),
        Probe {
            checks: vec![Check::FreeSpace, Check::FreeInodes],
            look: Box::new(move || free(room)),
        },
        one(Check::SharedMemory, shared_memory),
        one(Check::LockedMemory, || limit(Resource::Memlock)),
        one(Check::OpenFiles, || limit(Resource::Nofile)),
        one(Check::Stack, || limit(Resource::Stack)),
        one(Check::Cpus, cpus::cpus),
        one(Check::Memory, memory),
        storage(dir.to_owned(), storage_bytes),
    ]
}

fn one(check: Check, look: impl FnOnce() -> Finding + Send + 'static) -> Probe {
    Probe {
        checks: vec![check],
        look: Box::new(move || vec![(check, look())]),
    }
}

/// Both clocks over the same while, and a date that can be.
fn clock() -> Finding {
    let (steady, wall) = (Instant::now(), SystemTime::now());
    thread::sleep(WATCHED);
    let (steady, now) = (steady.elapsed(), SystemTime::now());
    let since_1970 = now.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
    if !(YEAR_2026..YEAR_2100).contains(&since_1970) {
        let why = format!("the wall clock says {since_1970} s since 1970, which cannot be");
        return Finding::Broken { why };
    }
    let Ok(wall) = now.duration_since(wall) else {
        return Finding::Broken {
            why: "the wall clock went back while it was watched".to_owned(),
        };
    };
    Finding::measured((wall.as_secs_f64() - steady.as_secs_f64()).abs() * 1e3)
}

/// The nearest directory that is there: a run directory is made when it is needed.
fn nearest(mut path: PathBuf) -> PathBuf {
    while !path.exists() && path.pop() {}
    if path.as_os_str().is_empty() {
        path.push(".");
    }
    path
}

fn free(dir: PathBuf) -> Vec<(Check, Finding)> {
    match statvfs(nearest(dir)) {
        Ok(found) => vec![
            (
                Check::FreeSpace,
                Finding::measured((found.f_bavail * found.f_frsize) as f64),
            ),
            (Check::FreeInodes, free_inodes(&found)),
        ],
        Err(error) => [Check::FreeSpace, Check::FreeInodes]
            .map(|check| {
                let why = error.to_string();
                (check, Finding::Broken { why })
            })
            .into(),
    }
}

/// Some file systems have as many as fit, and say that they have none at all.
fn free_inodes(found: &StatVfs) -> Finding {
    match found.f_files {
        0 => Finding::measured(f64::INFINITY),
        _ => Finding::measured(found.f_favail as f64),
    }
}

fn shared_memory() -> Finding {
    match statvfs("/dev/shm") {
        Ok(found) => Finding::measured((found.f_bavail * found.f_frsize) as f64),
        Err(error) => Finding::Broken {
            why: format!("/dev/shm: {error}"),
        },
    }
}

/// The limit that is in force.
fn limit(resource: Resource) -> Finding {
    let limit = getrlimit(resource).current;
    Finding::measured(limit.map_or(f64::INFINITY, |limit| limit as f64))
}

/// What `/proc/meminfo` tells (proc(5)).
fn memory() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    match (bytes("MemAvailable:"), bytes("MemTotal:")) {
        (Some(available), Some(total)) => {
            let swap = match bytes("SwapTotal:") {
                Some(0) | None => "no swap".to_owned(),
                Some(swap) => format!("{:.1} GiB of swap", gibibytes(swap)),
            };
            let detail = format!("of {:.1} GiB, {swap}", gibibytes(total));
            Finding::with_detail(available as f64, detail)
        }
        _ => Finding::Unknown {
            why: "/proc/meminfo does not tell".to_owned(),
        },
    }
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn storage(dir: PathBuf, bytes: u64) -> Probe {
    let checks = [Check::StorageBytes, Check::StorageWrite, Check::StorageRead];
    let look = move || match measure_storage(&dir, bytes) {
        Ok(report) => vec![
            (checks[0], Finding::measured(report.wrong_bytes as f64)),
            (checks[1], Finding::measured(report.write_gbs)),
            (
                checks[2],
                Finding::with_detail(report.read_gbs, report.how_read),
            ),
        ],
        Err(error) => {
            let why = error.to_string();
            let mut found = vec![(checks[0], Finding::Broken { why })];
            found.extend(checks[1..].iter().map(|check| {
                let why = "storage does not work".to_owned();
                (*check, Finding::Unknown { why })
            }));
            found
        }
    };
    Probe {
        checks: checks.into(),
        look: Box::new(look),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_sane() {
        let dir = tempfile::tempdir().unwrap();
        for probe in host_probes(dir.path(), 1 << 20) {
            let found = (probe.look)();
            assert_eq!(found.len(), probe.checks.len());
            for ((check, finding), expected) in found.into_iter().zip(probe.checks) {
                assert_eq!(check, expected);
                let Finding::Measured { value, .. } = finding else {
                    panic!("{check}: {finding:?}");
                };
                let sane = match check {
                    Check::Clock => value < 50.0,
                    Check::StorageBytes => value == 0.0,
                    Check::LockedMemory => value >= 0.0,
                    _ => value > 0.0,
                };
                assert!(sane, "{check}: {value}");
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_there_has_the_room_of_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest(dir.path().join("a/b")), dir.path());
        assert_eq!(nearest("not/there".into()), Path::new("."));
    }
}
