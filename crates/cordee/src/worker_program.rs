//! The program that ranks run: this one in a build for the CPU, `cordee-worker` in a CUDA build.

use std::{
    env,
    ffi::OsStr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, anyhow};
use cordee_protocol::ExitCode;

use crate::failure::Failure;

/// The program with the engine, where it is one of its own.
const NAME: &str = "cordee-worker";

/// The program that ranks run.
pub(crate) fn find() -> Result<PathBuf, Failure> {
    let this = env::current_exe()
        .context("finding this program")
        .map_err(environment)?;
    // Also where this process is the worker already.
    if !cfg!(feature = "cuda") {
        return Ok(this);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    beside_or_in_path(&this, &path).map_err(|tried| {
        let tried: Vec<String> = tried.iter().map(|it| it.display().to_string()).collect();
        let error = anyhow!(
            "`{NAME}`, the program that computes, is nowhere to be found: looked for {}",
            tried.join(", ")
        );
        environment(error).with_hint(format!(
            "put `{NAME}` of the same build beside `cordee`; `cargo build --release --features cuda` makes both"
        ))
    })
}

/// Has the worker take the place of this process, with its arguments. Returns why it did not.
pub(crate) fn take_over() -> Failure {
    let program = match find() {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let error = Command::new(&program).args(env::args_os().skip(1)).exec();
    environment(anyhow::Error::new(error).context(format!("starting {}", program.display())))
}

/// The worker beside the program `this`, else the first in the directories of `path`; all that was
/// tried, where there is none.
fn beside_or_in_path(this: &Path, path: &OsStr) -> Result<PathBuf, Vec<PathBuf>> {
    let beside = this.parent().map(Path::to_owned);
    let mut tried = Vec::new();
    for directory in beside.into_iter().chain(env::split_paths(path)) {
        let candidate = directory.join(NAME);
        if candidate.is_file() {
            return Ok(candidate);
        }
        if !tried.contains(&candidate) {
            tried.push(candidate);
        }
    }
    Err(tried)
}

fn environment(error: anyhow::Error) -> Failure {
    Failure::new(ExitCode::Environment, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_beside_the_program_comes_first() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for directory in ["bin", "one", "two"] {
            fs_err::create_dir(at(directory)).unwrap();
        }
        let path = env::join_paths([at("one"), at("two"), at("bin")]).unwrap();
        let find = || beside_or_in_path(&at("bin/cordee"), &path);
        let all = ["bin", "one", "two"].map(|directory| at(directory).join(NAME));
        assert_eq!(find().unwrap_err(), all);
        for directory in ["two", "one", "bin"] {
            let worker = at(directory).join(NAME);
            fs_err::write(&worker, "").unwrap();
            assert_eq!(find().unwrap(), worker);
        }
    }
}
