//! Finds the checkpoint to go on from. The directory itself is the truth; `LATEST` is not read.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::durable::sync_directory;
use crate::layout::{SET_ASIDE, TEMPORARY, directory_name, step_of};
use crate::{Checkpoint, CheckpointError, Result};

/// Whether a directory was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CandidateKind {
    /// An attempt that was never committed: of a save in flight, or left by a crash.
    HalfWritten,
    /// Renamed into place by a commit. It may have been damaged since.
    Committed,
}

/// A directory that is named like a checkpoint or like an attempt at one; not yet looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The directory.
    pub path: PathBuf,
    /// The step in its name.
    pub step: u64,
    /// Whether it was committed.
    pub kind: CandidateKind,
}

/// What was looked at and why it will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The directory.
    pub path: PathBuf,
    /// Why, in words that name the file.
    pub reason: String,
}

/// The newest checkpoint that is whole, and everything newer that is not.
#[derive(Debug)]
pub struct Found {
    /// The checkpoint, every byte of it verified; none if there is none to go on from.
    pub checkpoint: Option<Checkpoint>,
    /// Damaged checkpoints newer than it, newest first, and all half-written attempts.
    pub rejected: Vec<Rejected>,
}

/// Every checkpoint and attempt in a directory, the newest step first. None if it does not exist.
pub fn discover(checkpoints_dir: &Path) -> Result<Vec<Candidate>> {
    let entries = match fs::read_dir(checkpoints_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut candidates = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let (name, kind) = match name.strip_prefix(TEMPORARY) {
            Some(name) => (name, CandidateKind::HalfWritten),
            None => (&*name, CandidateKind::Committed),
        };
        if let Some(step) = step_of(name) {
            candidates.push(Candidate {
                path: entry.path(),
                step,
                kind,
            });
        }
    }
    candidates.sort_by_key(|candidate| std::cmp::Reverse((candidate.step, candidate.kind)));
    Ok(candidates)
}

/// Looks from the newest checkpoint to the oldest until one is whole, reading every byte of it.
///
/// To be called by one rank, which tells the others the step.
pub fn newest_valid(checkpoints_dir: &Path) -> Result<Found> {
    let mut found = Found {
        checkpoint: None,
        rejected: Vec::new(),
    };
    for candidate in discover(checkpoints_dir)? {
        let reason = match candidate.kind {
            CandidateKind::HalfWritten => "half-written: never committed".to_owned(),
            CandidateKind::Committed if found.checkpoint.is_some() => continue,
            CandidateKind::Committed => match verify(&candidate.path) {
                Ok(checkpoint) => {
                    found.checkpoint = Some(checkpoint);
                    continue;
                }
                // A file that cannot be read now may be whole: passing over it would go on from an
                // older checkpoint than there is.
                Err(CheckpointError::Io(error)) if may_be_whole(&error) => {
                    return Err(error.into());
                }
                Err(error) => error.to_string(),
            },
        };
        found.rejected.push(Rejected {
            path: candidate.path,
            reason,
        });
    }
    Ok(found)
}

/// Whether an error says that a file could not be read rather than what is wrong with it.
fn may_be_whole(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof
    )
}

/// Renames every checkpoint newer than `step` so that no discovery finds it, and returns the new
/// paths. For a run that goes on from an older one: the newer ones belong to a course it leaves, and
/// a later resume must not jump onto it. Nothing is deleted.
pub fn set_aside_newer(checkpoints_dir: &Path, step: u64) -> Result<Vec<PathBuf>> {
    let mut moved = Vec::new();
    for candidate in discover(checkpoints_dir)? {
        if candidate.kind == CandidateKind::HalfWritten || candidate.step <= step {
            continue;
        }
        let name = directory_name(candidate.step);
        let free =
            (1..).map(|attempt| checkpoints_dir.join(format!("{SET_ASIDE}{attempt}-{name}")));
        let path = free
            .into_iter()
            .find(|path| !path.exists())
            .expect("numbers do not run out");
        fs::rename(&candidate.path, &path)?;
        moved.push(path);
    }
    if !moved.is_empty() {
        sync_directory(checkpoints_dir)?;
    }
    Ok(moved)
}

/// Opens a checkpoint and verifies every byte of it.
pub fn verify(path: &Path) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    checkpoint.verify()?;
    Ok(checkpoint)
}
