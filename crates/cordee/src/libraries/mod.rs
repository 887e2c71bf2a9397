//! CUDA's libraries: which ones a program needs, where they are, and what to tell the loader so that
//! it finds them too.
//!
//! What is looked for stands in the program itself; where, in [`Places`], which holds all that the
//! environment says, so that the search is a function of that and of the files there are. Nothing is
//! opened or run: a library is a file of this machine's kind under the right name.

mod elf;
mod known;
mod loader;
mod places;
mod python;
mod search;
#[cfg(test)]
mod tests;
mod version;

pub(crate) use self::{
    elf::needed,
    known::{KNOWN, Known, Source, is_of_the_system, known},
    places::{LIBRARY_PATH, LOADER_PATH, Places},
    search::Search,
    version::version,
};

/// Where NCCL may be: where it was found, and what the loader knows by itself.
pub fn nccl_paths() -> Vec<std::path::PathBuf> {
    let file = "libnccl.so.2";
    let found = Places::of_this_process().search().find(file);
    found
        .map(|found| found.path)
        .into_iter()
        .chain([file.into()])
        .collect()
}
