//! Where both runs go.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use cordee_protocol::ExitCode;
use fs_err as fs;

use crate::failure::Failure;

/// The directory of both runs.
#[derive(Debug)]
pub(super) struct WorkDir {
    path: PathBuf,
    /// Nobody asked for it by name.
    temporary: bool,
    /// It was not there before.
    made: bool,
}

/// What is made in it.
const OURS: [&str; 6] = [
    "undisturbed",
    "undisturbed.log",
    "disturbed",
    "disturbed.log",
    "strace.log",
    "hosts",
];

/// How the name of the file begins by which the hosts of a run meet.
const MEETING: &str = ".meeting-";

impl WorkDir {
    /// The directory that was named, or a temporary one.
    pub(super) fn new(given: Option<&Path>) -> Result<Self, Failure> {
        let environment = |error: anyhow::Error| Failure::new(ExitCode::Environment, error);
        let Some(given) = given else {
            let dir = tempfile::Builder::new()
                .prefix("cordee-chaos-")
                .tempdir()
                .context("making a directory for both runs")
                .map_err(environment)?;
            return Ok(Self {
                path: dir.keep(),
                temporary: true,
                made: true,
            });
        };
        let made = !given.exists();
        fs::create_dir_all(given).map_err(|error| environment(error.into()))?;
        let path = fs::canonicalize(given).map_err(|error| environment(error.into()))?;
        if let Some(there) = OURS.iter().find(|name| path.join(name).exists()) {
            let error = anyhow!("{} exists already", path.join(there).display());
            return Err(Failure::usage(error).with_hint("choose another --dir, or remove it"));
        }
        Ok(Self {
            path,
            temporary: false,
            made,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn undisturbed(&self) -> PathBuf {
        self.path.join("undisturbed")
    }

    pub(super) fn disturbed(&self) -> PathBuf {
        self.path.join("disturbed")
    }

    pub(super) fn hosts(&self) -> PathBuf {
        self.path.join("hosts")
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }

    /// Whether it goes when all is well.
    pub(super) fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// Removes what was made.
    pub(super) fn remove(&self) {
        for name in OURS {
            let path = self.path.join(name);
            let _ = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
        }
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            // By which the hosts of a run meet; one that is killed leaves it.
            if entry.file_name().to_string_lossy().starts_with(MEETING) {
                let _ = fs::remove_file(entry.path());
            }
        }
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}
