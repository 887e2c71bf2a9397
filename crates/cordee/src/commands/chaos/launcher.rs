//! `cordee train` as a process of its own, which may be killed.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use fs_err as fs;

/// Lines of a log that are shown of a run that failed.
const LAST_LINES: usize = 12;

/// How a run is started, and started again.
#[derive(Clone, Debug)]
pub(super) struct Training {
    /// The config file.
    pub(super) config: PathBuf,
    /// What is changed in it.
    pub(super) sets: Vec<String>,
    pub(super) run_dir: PathBuf,
    /// What the launcher prints, of all starts.
    pub(super) log: PathBuf,
}

impl Training {
    /// Starts it, or goes on with it.
    pub(super) fn start(&self, resume: bool) -> io::Result<Launcher> {
        let mut options = fs::OpenOptions::new();
        let log = options.create(true).append(true).open(&self.log)?;
        let log = log.into_file();
        let mut command = command(&env::current_exe()?);
        command
            .arg("train")
            .arg(&self.config)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .args(self.sets.iter().flat_map(|set| ["--set", set]))
            .args(resume.then_some("--resume"))
            .args(["--progress", "plain"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // A Ctrl-C on the terminal is for this process, which ends the launcher itself.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Launcher(command.spawn()?))
    }

    /// The end of what it printed.
    pub(super) fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

/// The program, dying with this process where `setpriv` can see to that: else a killed `cordee chaos` would
/// leave it to train on.
fn command(program: &Path) -> Command {
    let bound = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !bound.is_ok_and(|status| status.success()) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A launcher that was started; killed when it is dropped.
#[derive(Debug)]
pub(super) struct Launcher(Child);

impl Launcher {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How it ended; none while it runs.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.kill();
    }
}
