//! Looking for libraries in directories, and telling the loader of them.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::elf::is_of_this_machine;

/// A directory that is looked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// Who named it.
    pub(crate) origin: String,
    /// Whether the loader looks there without being told.
    pub(crate) known_to_loader: bool,
}

/// A library that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// Who named its directory.
    pub(crate) origin: String,
}

/// Directories in the order in which they are looked in; the first that has a library counts.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    directories: Vec<Directory>,
    loader_path: Option<OsString>,
}

impl Search {
    pub(super) fn new(all: Vec<Directory>, loader_path: Option<OsString>) -> Self {
        let mut directories: Vec<Directory> = Vec::new();
        for directory in all {
            if !directories.iter().any(|other| other.path == directory.path) {
                directories.push(directory);
            }
        }
        Self {
            directories,
            loader_path,
        }
    }

    /// What is looked in.
    pub(crate) fn directories(&self) -> &[Directory] {
        &self.directories
    }

    /// A library by the name of its file, such as `libcublas.so.13`; of one whose version goes on
    /// after that, such as `libnvrtc-builtins.so.13.0`, the newest.
    pub(crate) fn find(&self, file: &str) -> Option<Found> {
        let in_directory = |directory: &Directory| {
            let exact = directory.path.join(file);
            let path = if is_of_this_machine(&exact) {
                exact
            } else {
                longer(&directory.path, file)?
            };
            let origin = directory.origin.clone();
            Some(Found { path, origin })
        };
        self.directories.iter().find_map(in_directory)
    }

    /// What `LD_LIBRARY_PATH` must be for a program that needs these files; `None` where it is right
    /// as it is. A directory that was given comes before all others, one that was found after them.
    pub(crate) fn loader_path(&self, files: &[String]) -> Option<OsString> {
        let (mut first, mut last): (Vec<&Path>, Vec<&Path>) = (Vec::new(), Vec::new());
        for directory in &self.directories {
            let holds = |file: &String| {
                self.find(file)
                    .is_some_and(|found| found.path.parent() == Some(&directory.path))
            };
            if directory.known_to_loader || !files.iter().any(holds) {
                continue;
            }
            if directory.origin == super::LIBRARY_PATH {
                first.push(&directory.path);
            } else {
                last.push(&directory.path);
            }
        }
        if first.is_empty() && last.is_empty() {
            return None;
        }
        let before: Vec<PathBuf> =
            env::split_paths(self.loader_path.as_deref().unwrap_or_default())
                .filter(|path| !path.as_os_str().is_empty())
                .collect();
        let all = first
            .into_iter()
            .chain(before.iter().map(PathBuf::as_path))
            .chain(last);
        // A colon in a path cannot be written down for the loader.
        env::join_paths(all.filter(|path| !path.as_os_str().as_encoded_bytes().contains(&b':')))
            .ok()
    }
}

/// The last of `FILE.*` by name.
fn longer(directory: &Path, file: &str) -> Option<PathBuf> {
    let entries = fs_err::read_dir(directory).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(|name| name.strip_prefix(file))
                .is_some_and(|rest| rest.starts_with('.'))
                && is_of_this_machine(path)
        })
        .max()
}
