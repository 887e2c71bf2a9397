//! How a process is, and where its threads are, without asking it: proc(5).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::process::Stat;

/// What a process is about, as far as the kernel can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// On a processor, or about to be.
    Running,
    /// Waiting for something that a signal may end.
    Sleeping,
    /// Waiting in the kernel for a device or a file system, where no signal reaches it.
    Uninterruptible,
    /// Stopped by a signal, or by who traces it.
    Stopped,
    /// Gone, or as good as.
    Ended,
}

impl ProcessState {
    /// The state of a process; [`Self::Ended`] where there is none.
    pub fn of(pid: u32) -> Self {
        match Stat::of(pid).map(|stat| stat.state) {
            Some('R') => Self::Running,
            Some('S' | 'I' | 'P') => Self::Sleeping,
            Some('D') => Self::Uninterruptible,
            Some('T' | 't') => Self::Stopped,
            _ => Self::Ended,
        }
    }
}

impl fmt::Display for ProcessState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::Uninterruptible => "stuck in the kernel",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
        })
    }
}

/// One thread of a process, and where it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thread {
    /// Its name.
    pub(crate) name: String,
    /// The function of the kernel in which it sleeps; empty where it does not, or nobody may know.
    pub(crate) waits_in: String,
    /// The functions of the kernel that led there, innermost first; empty likewise.
    pub(crate) kernel_stack: Vec<String>,
}

/// The threads of a process.
pub(crate) fn threads(pid: u32) -> Vec<Thread> {
    let Ok(tasks) = fs_err::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let read = |task: &std::path::Path, file: &str| {
        let text = fs_err::read_to_string(task.join(file)).unwrap_or_default();
        text.trim().to_owned()
    };
    tasks
        .filter_map(|task| Some(task.ok()?.path()))
        .map(|task| Thread {
            name: read(&task, "comm"),
            waits_in: Some(read(&task, "wchan"))
                .filter(|name| name != "0")
                .unwrap_or_default(),
            // `[<0>] futex_wait_queue+0x69/0xc0`
            kernel_stack: read(&task, "stack")
                .lines()
                .filter_map(|line| line.split_once("] ")?.1.split('+').next())
                .map(str::to_owned)
                .collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    fn wait_for(pid: u32, state: ProcessState) {
        let started = Instant::now();
        while ProcessState::of(pid) != state {
            assert!(started.elapsed() < Duration::from_secs(5), "never {state}");
            sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_process_sleeps_is_stopped_and_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        wait_for(pid, ProcessState::Sleeping);
        let threads = threads(pid);
        assert_eq!(threads.len(), 1);
        assert_eq!(threads[0].name, "sleep");
        kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
        wait_for(pid, ProcessState::Stopped);
        child.kill().unwrap();
        wait_for(pid, ProcessState::Ended);
        child.wait().unwrap();
        assert_eq!(ProcessState::of(pid), ProcessState::Ended);
    }
}
