//! What this machine allows to be done to a run, tried.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::geteuid;
use serde::Serialize;

use super::{
    disk::SmallDisk,
    kind::FaultKind,
    strace::{Tampering, Tracer},
};

/// A kind of fault that is not injected, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Skipped {
    pub(super) kind: FaultKind,
    pub(super) why: String,
}

/// Starts this command again in a mount namespace of its own, if that is allowed: a mount there needs no
/// root, nobody else sees it, and it goes with the last process, whatever happens to this one. Returns
/// where it is not allowed.
pub(super) fn enter_own_mounts() {
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    // Root needs no other user's rights, and has fewer in a namespace of users.
    let ways = if geteuid().is_root() {
        &ways[..]
    } else {
        &ways[1..]
    };
    let Ok(program) = env::current_exe() else {
        return;
    };
    for way in ways {
        let allowed = Command::new("unshare")
            .args(*way)
            .args(["--", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if allowed.is_ok_and(|status| status.success()) {
            // It returns only if it cannot be started, which the next way may do better.
            let _ = Command::new("unshare")
                .args(*way)
                .arg("--")
                .arg(&program)
                .args(env::args_os().skip(1))
                .arg("--own-mounts")
                .exec();
        }
    }
}

/// Which of the kinds can be injected here, and which not.
pub(super) fn sort(wanted: &[FaultKind]) -> (Vec<FaultKind>, Vec<Skipped>) {
    let wants = |needs: fn(FaultKind) -> bool| wanted.iter().any(|kind| needs(*kind));
    let mount = if wants(FaultKind::needs_mount) {
        try_mount()
    } else {
        Ok(())
    };
    let strace = if wants(FaultKind::needs_strace) {
        try_strace()
    } else {
        Ok(())
    };
    let (mut allowed, mut skipped) = (Vec::new(), Vec::new());
    for kind in wanted {
        let refused = [(kind.needs_mount(), &mount), (kind.needs_strace(), &strace)];
        let why = refused
            .iter()
            .find_map(|(needed, tried)| tried.as_ref().err().filter(|_| *needed));
        match why {
            None => allowed.push(*kind),
            Some(why) => skipped.push(Skipped {
                kind: *kind,
                why: why.clone(),
            }),
        }
    }
    (allowed, skipped)
}

fn try_mount() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    SmallDisk::mount(folder.path(), 1 << 20)
        .map(drop)
        .map_err(|error| {
            format!("a tmpfs cannot be mounted, neither here nor in a namespace: {error}")
        })
}

fn try_strace() -> Result<(), String> {
    Command::new("strace")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| format!("strace cannot be started: {error}"))?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut victim = Command::new("sleep")
        .arg("60")
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("sleep cannot be started: {error}"))?;
    let log = folder.path().join("strace.log");
    let kinds = [
        Tampering::FailingFsync,
        Tampering::Delay(Duration::from_millis(1)),
    ];
    let tried = kinds
        .into_iter()
        .try_for_each(|tampering| Tracer::attach(victim.id(), tampering, &log).map(Tracer::detach));
    let _ = victim.kill();
    let _ = victim.wait();
    tried
}
