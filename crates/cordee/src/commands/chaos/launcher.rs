//! `cordee train` as a process of its own, which may be killed.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use fs_err as fs;

use super::hosts::Host;

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
    /// Starts it, or goes on with it: on one of several hosts, or on this machine.
    pub(super) fn start_on(&self, host: Option<&Host<'_>>, resume: bool) -> io::Result<Launcher> {
        let mut options = fs::OpenOptions::new();
        let log = host.map_or(&*self.log, |host| host.log);
        let log = options.create(true).append(true).open(log)?;
        let log = log.into_file();
        let prefix = host.map_or(&[][..], |host| &host.prefix);
        let mut command = command(prefix, &env::current_exe()?);
        if let Some(host) = host {
            let (nodes, node) = (host.nodes.to_string(), host.node.to_string());
            command.args(["train", "--nnodes", &nodes, "--node-rank", &node]);
        } else {
            command.arg("train");
        }
        command
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

/// The program behind a prefix, dying with this process where `setpriv` can see to that: else a killed
/// `cordee chaos` would leave it to train on.
fn command(prefix: &[String], program: &Path) -> Command {
    let bound = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let mut words: Vec<&OsStr> = Vec::new();
    if bound.is_ok_and(|status| status.success()) {
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsStr::new));
    }
    words.extend(prefix.iter().map(OsStr::new));
    let mut command = Command::new(words.first().copied().unwrap_or(program.as_os_str()));
    if !words.is_empty() {
        command.args(&words[1..]).arg(program);
    }
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
