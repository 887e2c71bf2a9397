//! A control group for every worker (cgroup v2), where we may make one.
//!
//! Nothing leaves a control group by itself: neither a session of its own nor a second fork takes a
//! process out of it. One write to `cgroup.kill` ends all that a worker started, whoever its parent is
//! by now. No controller is switched on and no limit set; memory is counted where it was before.
//!
//! ```text
//! OUR GROUP/cordee-NAMESPACE-PID-START/rank-000     and so on, of the launcher of that identity
//! ```
//!
//! A launcher that was killed leaves its groups, and in them whatever did not die with it. The next
//! launch in the same group finds them by the name, sees that this launcher is gone, and clears them.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fs_err::{File, OpenOptions};

use crate::hierarchy::{Hierarchy, own_groups};
use crate::process::Identity;

const PREFIX: &str = "cordee-";
/// How long what was killed may take to leave its group.
const CLEAR_LIMIT: Duration = Duration::from_secs(5);

/// The groups of one launch. They are removed when this is dropped.
#[derive(Debug)]
pub(crate) struct WorkerGroups {
    directory: PathBuf,
}

/// The group of one worker.
#[derive(Debug)]
pub(crate) struct WorkerGroup {
    directory: PathBuf,
}

/// What launchers that are gone had left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    pub(crate) launchers: usize,
    pub(crate) processes: usize,
}

impl WorkerGroups {
    /// Makes the group of a launch, or says in a few words why there is none.
    pub(crate) fn create(own: &Identity) -> Result<Self, String> {
        let parent = own_directory()?;
        let directory = parent.join(format!("{PREFIX}{own}"));
        match fs_err::create_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(|error| error.to_string())?,
        }
        let groups = Self { directory };
        // Moving a process needs the right to write to the group of both.
        let procs = parent.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(procs)
            .map_err(|error| error.to_string())?;
        if !groups.directory.join("cgroup.kill").exists() {
            return Err("the kernel has no cgroup.kill, which came with Linux 5.14".to_owned());
        }
        Ok(groups)
    }

    /// Makes the group of a rank, empty.
    pub(crate) fn group(&self, rank: usize) -> io::Result<WorkerGroup> {
        let directory = self.directory.join(format!("rank-{rank:03}"));
        match fs_err::create_dir(&directory) {
            // Of an earlier attempt, with something in it that even the kernel could not end.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        Ok(WorkerGroup { directory })
    }

    /// Whether a process is in one of the groups; a zombie still is.
    pub(crate) fn hold(&self, pid: u32) -> bool {
        let name = self.directory.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| {
            group_of(pid).is_some_and(|path| path.split('/').any(|part| part == name))
        })
    }
}

impl Drop for WorkerGroups {
    fn drop(&mut self) {
        clear(&self.directory, Instant::now() + CLEAR_LIMIT);
    }
}

impl WorkerGroup {
    /// The file through which a process enters: one that writes `0` moves itself.
    pub(crate) fn entrance(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.directory.join("cgroup.procs"))
    }

    /// Whether a process got in.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        let own = self.directory.components().rev().take(2);
        group_of(pid).is_some_and(|path| {
            let path = PathBuf::from(path);
            own.eq(path.components().rev().take(2))
        })
    }

    /// How many processes run in it.
    pub(crate) fn processes(&self) -> usize {
        processes(&self.directory)
    }

    /// Kills all that is in it.
    pub(crate) fn kill(&self) {
        kill(&self.directory);
    }
}

impl Leftovers {
    /// What there is to say of it.
    pub(crate) fn remark(self) -> Option<String> {
        (self.processes > 0).then(|| {
            format!(
                "killed {} that {} had left behind when killed",
                if self.processes == 1 {
                    "1 process".to_owned()
                } else {
                    format!("{} processes", self.processes)
                },
                if self.launchers == 1 {
                    "a launcher".to_owned()
                } else {
                    format!("{} launchers", self.launchers)
                },
            )
        })
    }
}

/// Kills what launchers that are gone have left in their groups beside ours, and removes them.
pub(crate) fn clear_leftovers(own: &Identity) -> Leftovers {
    let mut leftovers = Leftovers::default();
    let Ok(parent) = own_directory() else {
        return leftovers;
    };
    for directory in directories_in(&parent) {
        let name = directory.file_name().and_then(|name| name.to_str());
        let identity = name
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(Identity::parse);
        if identity.is_some_and(|identity| identity.is_gone(own)) {
            leftovers.launchers += 1;
            leftovers.processes += processes(&directory);
            clear(&directory, Instant::now() + CLEAR_LIMIT);
        }
    }
    leftovers
}

/// The directory of the group that we are in.
fn own_directory() -> Result<PathBuf, String> {
    own_groups()
        .into_iter()
        .find_map(|(hierarchy, directory)| (hierarchy == Hierarchy::Unified).then_some(directory))
        // A group outside of what a container sees is shown as `/../..`.
        .filter(|directory| !directory.components().any(|part| part.as_os_str() == ".."))
        .ok_or_else(|| "no control group of cgroup v2 is mounted here".to_owned())
}

/// The path of a process's group in the hierarchy of cgroup v2.
fn group_of(pid: u32) -> Option<String> {
    let groups = fs_err::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.trim_end_matches(" (deleted)").to_owned())
}

/// Processes in a group and the groups below it.
fn processes(directory: &Path) -> usize {
    let own = fs_err::read_to_string(directory.join("cgroup.procs"));
    let below = directories_in(directory);
    own.map_or(0, |pids| pids.lines().count())
        + below.iter().map(|below| processes(below)).sum::<usize>()
}

fn kill(directory: &Path) {
    // Groups below are killed with it. A group that is gone holds nothing.
    let _ = OpenOptions::new()
        .write(true)
        .open(directory.join("cgroup.kill"))
        .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
}

/// Kills what is in a group and removes it with the groups below, which takes until the last process
/// in them has ended.
fn clear(directory: &Path, deadline: Instant) {
    kill(directory);
    while !remove(directory) && Instant::now() < deadline {
        sleep(Duration::from_millis(2));
    }
}

/// Whether the group is gone.
fn remove(directory: &Path) -> bool {
    for below in directories_in(directory) {
        remove(&below);
    }
    match fs_err::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn directories_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs_err::read_dir(directory) else {
        return Vec::new();
    };
    let entries = entries.flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}
