//! System calls of a process that fail or take long, by way of `strace`.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use fs_err as fs;
use rustix::process::{Pid, Signal, kill_process};

/// How long it may take to take hold of a process, and to let it go.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked.
const TICK: Duration = Duration::from_millis(5);

/// What is done to system calls. A question mark allows for machines without that call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tampering {
    /// Every fsync fails.
    FailingFsync,
    /// Each call that reaches the disk takes so much longer, and each write a fifth of that.
    Delay(Duration),
}

const SYNCS: &str = "fsync,fdatasync";
const DISK: &str = "fsync,fdatasync,pwrite64,?rename,?renameat,?renameat2";

impl Tampering {
    /// What `strace` is told.
    fn arguments(self) -> Vec<String> {
        match self {
            Self::FailingFsync => vec![
                format!("--trace={SYNCS}"),
                format!("--inject={SYNCS}:error=EIO"),
            ],
            Self::Delay(delay) => vec![
                format!("--trace={DISK},write"),
                format!("--inject={DISK}:delay_enter={}", delay.as_micros()),
                format!("--inject=write:delay_enter={}", delay.as_micros() / 5),
            ],
        }
    }
}

/// A hold on a process, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Tracer {
    child: Child,
    said: PathBuf,
}

impl Tracer {
    /// Takes hold of all threads of a process, those to come too. What `strace` says goes to `log`.
    pub(super) fn attach(pid: u32, tampering: Tampering, log: &Path) -> Result<Self, String> {
        let file = fs::File::create(log).map_err(|error| format!("the log of strace: {error}"))?;
        let child = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-p", &pid.to_string()])
            .args(tampering.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file.into_file())
            .spawn()
            .map_err(|error| format!("strace cannot be started: {error}"))?;
        let mut tracer = Self {
            child,
            said: log.to_owned(),
        };
        let begun = Instant::now();
        loop {
            let said = tracer.said();
            if said.contains("attached") {
                return Ok(tracer);
            }
            let ended = tracer.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > PATIENCE {
                let mut why = format!("strace does not take hold of process {pid}");
                if let Some(line) = tracer.said().lines().next() {
                    let _ = write!(why, ": {}", line.trim_start_matches("strace: "));
                }
                return Err(why);
            }
            thread::sleep(TICK);
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// Lets the process go.
    pub(super) fn detach(self) {
        drop(self);
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Killed at once it might leave a thread stopped; asked, it lets each go first.
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(TICK),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
