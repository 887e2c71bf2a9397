//! Keeps the newest checkpoints and removes older ones, and what crashes left behind.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::discover::{CandidateKind, discover};
use crate::layout::TRASH;
use crate::{Checkpoint, Result};

/// Removes the oldest checkpoints beyond `keep` (0 keeps all), and returns what was removed.
///
/// To be called only after a commit has returned, when no save is in flight. Only checkpoints that
/// open (a sound manifest and shards of the right length) count and are removed, so a damaged one
/// never takes the place of a good one, and the newest that opens always stays. Attempts at the step
/// of the newest checkpoint or before it are left from a crash and go too, as does old trash.
pub fn retain(checkpoints_dir: &Path, keep: usize) -> Result<Vec<PathBuf>> {
    let candidates = discover(checkpoints_dir)?;
    let committed: Vec<_> = (candidates.iter())
        .filter(|candidate| candidate.kind == CandidateKind::Committed)
        .filter(|candidate| Checkpoint::open(&candidate.path).is_ok())
        .collect();
    let Some(newest) = committed.first() else {
        return Ok(Vec::new());
    };
    let surplus = if keep == 0 { committed.len() } else { keep };
    let old = committed.iter().skip(surplus).rev().copied();
    let stale = (candidates.iter()).filter(|candidate| {
        candidate.kind == CandidateKind::HalfWritten && candidate.step <= newest.step
    });
    let mut removed = Vec::new();
    for candidate in old.chain(stale) {
        remove_through_trash(&candidate.path)?;
        removed.push(candidate.path.clone());
    }
    for entry in fs::read_dir(checkpoints_dir)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(TRASH))
        {
            remove(&path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Removes a directory so that no reader ever sees half of it: renamed first, then removed.
pub(crate) fn remove_through_trash(path: &Path) -> Result<()> {
    remove(&move_to_trash(path)?)
}

/// Renames a directory to a name that nobody reads, and returns it. What is in trash stays there.
pub(crate) fn move_to_trash(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(TRASH) {
        return Ok(path.to_owned());
    }
    let trash = path.with_file_name(format!("{TRASH}{}", name.trim_start_matches('.')));
    if fs::symlink_metadata(&trash).is_ok() {
        remove(&trash)?;
    }
    fs::rename(path, &trash)?;
    Ok(trash)
}

/// Removes a directory, or the file that somebody put where a directory should be.
fn remove(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        return Ok(fs::remove_dir_all(path)?);
    }
    Ok(fs::remove_file(path)?)
}
