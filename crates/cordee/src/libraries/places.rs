//! What the environment says of where libraries are.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use super::{
    loader, python,
    search::{Directory, Search},
};

/// Directories to look in first, separated by colons.
pub(crate) const LIBRARY_PATH: &str = "CORDEE_LIBRARY_PATH";

/// Where the loader looks first.
pub(crate) const LOADER_PATH: &str = "LD_LIBRARY_PATH";

/// All that decides where is looked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// The root of the file system.
    pub(crate) root: PathBuf,
    /// Of [`LIBRARY_PATH`].
    pub(crate) given: Option<OsString>,
    /// Of [`LOADER_PATH`].
    pub(crate) loader_path: Option<OsString>,
    /// Toolkits that are named, with the variable that does.
    pub(crate) toolkits: Vec<(&'static str, PathBuf)>,
    /// Python's environments that are named, with the variable that does.
    pub(crate) environments: Vec<(&'static str, PathBuf)>,
    /// Where programs are, Python among them.
    pub(crate) path: OsString,
    /// The user's directory.
    pub(crate) home: Option<PathBuf>,
}

impl Places {
    /// Those of this process.
    pub(crate) fn of_this_process() -> Self {
        let named = |names: [&'static str; 2]| {
            names
                .into_iter()
                .filter_map(|name| Some((name, PathBuf::from(set(name)?))))
                .collect()
        };
        Self {
            root: PathBuf::from("/"),
            given: set(LIBRARY_PATH),
            loader_path: set(LOADER_PATH),
            toolkits: named(["CUDA_HOME", "CUDA_PATH"]),
            environments: named(["VIRTUAL_ENV", "CONDA_PREFIX"]),
            path: env::var_os("PATH").unwrap_or_default(),
            home: set("HOME").map(PathBuf::from),
        }
    }

    /// Looks up which directories there are.
    pub(crate) fn search(&self) -> Search {
        let mut directories = Vec::new();
        let mut add = |path: PathBuf, origin: &str, known_to_loader: bool| {
            directories.push(Directory {
                path,
                origin: origin.to_owned(),
                known_to_loader,
            });
        };
        split(self.given.as_deref()).for_each(|path| add(path, LIBRARY_PATH, false));
        split(self.loader_path.as_deref()).for_each(|path| add(path, LOADER_PATH, true));
        for (name, toolkit) in &self.toolkits {
            in_toolkit(toolkit).for_each(|path| add(path, name, false));
        }
        for path in loader::directories(&self.root) {
            add(path, "the loader", true);
        }
        for toolkit in toolkits(&self.root) {
            in_toolkit(&toolkit).for_each(|path| add(path, "toolkit", false));
        }
        for (name, environment) in &self.environments {
            // Conda has them there.
            add(environment.join("lib"), name, false);
        }
        for path in python::directories(self) {
            add(path, "Python", false);
        }
        Search::new(directories, self.loader_path.clone())
    }
}

/// A variable that says something.
fn set(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The directories of a list that are written from the root.
fn split(list: Option<&OsStr>) -> impl Iterator<Item = PathBuf> {
    let paths: Vec<_> = env::split_paths(list.unwrap_or_default()).collect();
    paths.into_iter().filter(|path| path.is_absolute())
}

/// Where a toolkit keeps libraries of this machine's kind.
#[cfg(not(target_arch = "aarch64"))]
const TARGET: &str = "targets/x86_64-linux/lib";
#[cfg(target_arch = "aarch64")]
const TARGET: &str = "targets/sbsa-linux/lib";

/// Where a toolkit keeps libraries.
fn in_toolkit(toolkit: &Path) -> impl Iterator<Item = PathBuf> {
    ["lib64", TARGET]
        .map(|place| toolkit.join(place))
        .into_iter()
}

/// Toolkits where installers put them, `cuda` first, then the newest.
fn toolkits(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.join("usr/local/cuda"), root.join("opt/cuda")];
    found.extend(numbered(&root.join("usr/local"), "cuda-"));
    found
}

/// Directories in `parent` whose names are `start` and a version, the newest first.
pub(super) fn numbered(parent: &Path, start: &str) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(Vec<u64>, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(start)?;
            let numbers: Option<_> = version.split('.').map(|part| part.parse().ok()).collect();
            Some((numbers?, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}
