//! NVIDIA's libraries among Python's packages, found without running Python.
//!
//! Wheels hold them in `nvidia/cu13/lib` (CUDA 13) or in a directory of each, `nvidia/cublas/lib`.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::places::{Places, numbered};

/// Directories of libraries: of the environments that are named, then of the Pythons in the path,
/// then of the system's.
pub(super) fn directories(places: &Places) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = places
        .environments
        .iter()
        .map(|(_, path)| path.clone())
        .collect();
    for directory in env::split_paths(&places.path) {
        let python = directory.join("python3");
        // The link of an environment lies in it; what it leads to may have packages as well.
        for program in [Some(python.clone()), python.canonicalize().ok()] {
            let Some(program) = program.filter(|program| program.is_file()) else {
                continue;
            };
            prefixes.extend(program.ancestors().nth(2).map(Path::to_owned));
        }
    }
    prefixes.extend(places.home.iter().map(|home| home.join(".local")));
    prefixes.extend(["usr/local", "usr"].map(|prefix| places.root.join(prefix)));

    let mut found: Vec<PathBuf> = Vec::new();
    for packages in prefixes.iter().flat_map(|prefix| packages(prefix)) {
        for directory in of_nvidia(&packages.join("nvidia")) {
            if !found.contains(&directory) {
                found.push(directory);
            }
        }
    }
    found
}

/// Where the Pythons of a prefix keep packages.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let mut pythons = numbered(&prefix.join("lib"), "python");
    // Debian's, for all of its Pythons 3.
    let shared = prefix.join("lib/python3");
    if !pythons.contains(&shared) {
        pythons.push(shared);
    }
    let kinds = ["site-packages", "dist-packages"];
    pythons
        .iter()
        .flat_map(|python| kinds.map(|kind| python.join(kind)))
        .collect()
}

/// `cu13/lib` and the like first: what is of one release belongs together.
fn of_nvidia(nvidia: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = numbered(nvidia, "cu");
    let entries = fs_err::read_dir(nvidia).into_iter().flatten().flatten();
    let mut others: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    others.sort();
    others.retain(|path| !found.contains(path));
    found.extend(others);
    found
        .into_iter()
        .map(|directory| directory.join("lib"))
        .filter(|directory| directory.is_dir())
        .collect()
}
