//! Processes: which there are, whose they are, and signals to those that are ours.

use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use fs_err as fs;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, waitpid,
};

/// How long processes may take to be gone once they should be.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// How often it is looked.
const TICK: Duration = Duration::from_millis(10);

/// What `/proc/PID/stat` tells of a process (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) state: char,
    pub(super) parent: u32,
    /// When it was started, in ticks since the system was.
    started: u64,
}

impl Process {
    /// The process of that number; none if there is none.
    pub(super) fn find(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // A name may hold spaces and brackets, but nothing after it does.
        let (before, after) = stat.rsplit_once(") ")?;
        let (pid, name) = before.split_once(" (")?;
        let mut fields = after.split(' ');
        Some(Self {
            pid: pid.parse().ok()?,
            name: name.to_owned(),
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            // The 22nd of all, and two after the parent are gone.
            started: fields.nth(17)?.parse().ok()?,
        })
    }

    /// Whether it has ended, and only its exit code is left.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Takes every process that this one's children leave behind for its own child, so that none is missed.
pub(super) fn adopt_orphans() -> std::io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// The children of a process, in the order in which they were started.
pub(super) fn children(parent: u32) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut children: Vec<Process> = pids
        .filter_map(Process::find)
        .filter(|process| process.parent == parent)
        .collect();
    children.sort_by_key(|process| (process.started, process.pid));
    children
}

/// The children of this process that are not in `own`. Those that have ended are done with.
pub(super) fn strangers(own: &[u32]) -> Vec<Process> {
    let this = getpid().as_raw_nonzero().get().cast_unsigned();
    let children = children(this).into_iter();
    let strangers = children.filter(|process| !own.contains(&process.pid));
    let (ended, alive): (Vec<_>, Vec<_>) = strangers.partition(Process::has_ended);
    for process in ended {
        if let Some(pid) = Pid::from_raw(process.pid.cast_signed()) {
            // It may be gone by now, which is as well.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
    alive
}

/// Waits until this process has no children but `own` and none of `pids` is there, or says who is left.
pub(super) fn wait_until_gone(own: &[u32], pids: &[u32]) -> Result<Duration, Vec<Process>> {
    let begun = Instant::now();
    loop {
        let mut left = strangers(own);
        let known: HashSet<u32> = left.iter().map(|process| process.pid).collect();
        let others = pids.iter().filter(|pid| !known.contains(pid));
        left.extend(
            others
                .filter_map(|pid| Process::find(*pid))
                .filter(|it| !it.has_ended()),
        );
        if left.is_empty() {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > GRACE {
            return Err(left);
        }
        thread::sleep(TICK);
    }
}

/// Kills every child but `own`, which nobody else would do.
pub(super) fn kill_strangers(own: &[u32]) {
    let this = getpid().as_raw_nonzero().get().cast_unsigned();
    for process in strangers(own) {
        if let Ok(handle) = Handle::open(process.pid, this) {
            let _ = handle.signal(Signal::KILL);
        }
    }
    let _ = wait_until_gone(own, &[]);
}

/// A process that is known to be the child of another. Its number may be given to the next process once
/// it is gone; this is never that one.
pub(super) struct Handle {
    pidfd: OwnedFd,
    pub(super) pid: u32,
}

impl Handle {
    /// The process `pid`, if it is a child of `parent`.
    pub(super) fn open(pid: u32, parent: u32) -> Result<Self, String> {
        let number =
            Pid::from_raw(pid.cast_signed()).ok_or_else(|| format!("{pid} is no process"))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())
            .map_err(|error| format!("process {pid} cannot be held: {error}"))?;
        // Asked after it is held, so that the answer is about the process that is held.
        match Process::find(pid) {
            Some(process) if process.parent == parent => Ok(Self { pidfd, pid }),
            _ => Err(format!("process {pid} is no child of process {parent}")),
        }
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), String> {
        pidfd_send_signal(&self.pidfd, signal)
            .map_err(|error| format!("process {} takes no signal: {error}", self.pid))
    }

    /// Whether it is stopped by a signal.
    pub(super) fn is_stopped(&self) -> bool {
        Process::find(self.pid).is_some_and(|process| process.state == 'T')
    }
}

/// Those that are left, in words.
pub(super) fn names(processes: &[Process]) -> String {
    let names: Vec<String> = processes
        .iter()
        .map(|it| format!("{} ({})", it.pid, it.name))
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let process =
            Process::parse("17 (a ) R (b) S 5 17 17 0 -1 0 0 0 0 0 1 2 0 0 20 0 1 0 4711 0\n")
                .unwrap();
        assert_eq!(process.name, "a ) R (b");
        assert_eq!((process.pid, process.state, process.parent), (17, 'S', 5));
        assert_eq!(process.started, 4711);
        assert_eq!(Process::parse("17 (a"), None);
    }

    #[test]
    fn only_a_child_of_the_one_named_is_held() {
        let this = std::process::id();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(Handle::open(child.id(), 1).is_err());
        let handle = Handle::open(child.id(), this).unwrap();
        handle.signal(Signal::STOP).unwrap();
        let begun = Instant::now();
        while !handle.is_stopped() {
            assert!(begun.elapsed() < GRACE, "it was stopped");
        }
        handle.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(handle.signal(Signal::KILL).is_err());
    }
}
