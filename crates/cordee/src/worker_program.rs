//! The program that ranks run: this one in a build for the CPU, `cordee-worker` in a CUDA build.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, anyhow};
use cordee_protocol::ExitCode;

use crate::{
    failure::Failure,
    libraries::{self, LIBRARY_PATH, LOADER_PATH, Places, Search, Source, is_of_the_system, known},
};

/// The program with the engine, where it is one of its own.
const NAME: &str = "cordee-worker";

/// What the worker opens if it is there, beside what its file names.
const OPENED: [&str; 2] = ["libcudnn.so.9", "libnccl.so.2"];

/// A program and what must be in its environment.
#[derive(Debug)]
pub(crate) struct WorkerProgram {
    pub(crate) path: PathBuf,
    pub(crate) environment: Vec<(OsString, OsString)>,
}

/// The program that ranks run, with all the libraries that it needs; else what is missing.
pub(crate) fn find() -> Result<WorkerProgram, Failure> {
    let path = path()?;
    let mut environment = Vec::new();
    // A build for the CPU needs nothing that a machine could lack.
    if cfg!(feature = "cuda") {
        let search = Places::of_this_process().search();
        let files = needed(&path)?;
        expect_all(&search, &files)?;
        let opened = OPENED.map(str::to_owned);
        let loader_path = search.loader_path(&[files, opened.to_vec()].concat());
        environment.extend(loader_path.map(|value| (LOADER_PATH.into(), value)));
    }
    Ok(WorkerProgram { path, environment })
}

/// A hash of the program, for telling builds apart.
pub(crate) fn hash() -> Result<String, Failure> {
    let path = path()?;
    let hash = || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs_err::File::open(&path)?)?;
        Ok(hasher.finalize().to_hex()[..16].to_owned())
    };
    hash().map_err(|error: std::io::Error| Failure::new(ExitCode::Environment, error))
}

/// Has the worker take the place of this process, with its arguments. Returns why it did not.
pub(crate) fn take_over() -> Failure {
    let program = match find() {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let error = Command::new(&program.path)
        .args(env::args_os().skip(1))
        .envs(program.environment)
        .exec();
    environment(anyhow::Error::new(error).context(format!("starting {}", program.path.display())))
}

/// Where the program is.
pub(crate) fn path() -> Result<PathBuf, Failure> {
    let this = env::current_exe()
        .context("finding this program")
        .map_err(environment)?;
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

/// The libraries of a worker that a machine may lack.
pub(crate) fn needed(worker: &Path) -> Result<Vec<String>, Failure> {
    let mut files = libraries::needed(worker).map_err(environment)?;
    files.retain(|file| !is_of_the_system(file));
    Ok(files)
}

/// That there are all of `files`, before the loader ends the worker with one word about the first.
fn expect_all(search: &Search, files: &[String]) -> Result<(), Failure> {
    let missing: Vec<&String> = files
        .iter()
        .filter(|file| search.find(file).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut text = format!("`{NAME}` needs libraries that are not to be found:");
    for file in &missing {
        let used_for = known(file).map_or("", |known| known.used_for);
        let _ = write!(text, "\n  {file:<20}  {used_for}");
    }
    text.push_str("\nlooked in");
    for directory in search.directories() {
        let _ = write!(
            text,
            "\n  {}  ({})",
            directory.path.display(),
            directory.origin
        );
    }
    Err(environment(anyhow!(text)).with_hint(how_to_get(&missing)))
}

/// What to do about files that are missing.
pub(crate) fn how_to_get(files: &[impl AsRef<str>]) -> String {
    let sources = || {
        files
            .iter()
            .filter_map(|file| Some(known(file.as_ref())?.comes_with))
    };
    let mut packages: Vec<&str> = sources()
        .filter_map(|source| match source {
            Source::Package(name) => Some(name),
            _ => None,
        })
        .collect();
    packages.dedup();
    let mut ways = Vec::new();
    if sources().any(|source| source == Source::Driver) {
        ways.push(
            "libcuda comes with NVIDIA's driver, which a machine without GPUs has no use for: compute where there is one"
                .to_owned(),
        );
    }
    if !packages.is_empty() {
        ways.push(format!(
            "CUDA's toolkit has these, and so has Python's index: `pip install {}`",
            packages.join(" ")
        ));
    }
    ways.push(format!(
        "{LIBRARY_PATH} names directories to look in first; `cordee doctor` tells all"
    ));
    ways.join("; ")
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
    fn every_missing_library_is_told_with_all_places() {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            root: root.path().to_owned(),
            given: Some("/given/one:/given/two".into()),
            ..Places::default()
        };
        let files = ["libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13"].map(str::to_owned);
        let failure = expect_all(&places.search(), &files).unwrap_err();
        assert_eq!(failure.code, 3);
        let text = failure.to_string();
        let text = text.replace(root.path().to_str().unwrap(), "");
        // Some directories are of one kind of machine.
        let is_common = |line: &&str| !line.contains("-linux");
        let lines: Vec<&str> = text.lines().filter(is_common).collect();
        insta::assert_snapshot!(lines.join(
            "
"
        ));
    }

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
