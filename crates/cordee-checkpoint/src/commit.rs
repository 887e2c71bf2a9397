//! From an attempt to a checkpoint: begin, commit, abandon. All in the process of writer 0.
//!
//! A commit is one rename. Before it, a crash leaves a `.tmp-` directory that nobody reads; after it,
//! a checkpoint whose every byte was synced before.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use fs_err as fs;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde_json::Value;

use crate::durable::{
    MAX_JSON, name_absence, name_lack_of_space, read_file, sync_directory, write_file,
};
use crate::layout::{
    LATEST, MANIFEST, TEMPORARY, committed_path, directory_name, record_name, temporary_path,
};
use crate::manifest::Manifest;
use crate::record::FORMAT;
use crate::retain::{move_to_trash, remove_through_trash};
use crate::{CheckpointError, Plan, Result, WriterRecord};

/// How often the commit looks for records.
const POLL: Duration = Duration::from_millis(10);

/// What is committed.
#[derive(Clone, Debug)]
pub struct CommitInfo<'a> {
    /// Optimizer step that the checkpoint was taken after.
    pub step: u64,
    /// The plan that every writer followed.
    pub plan: &'a Plan,
    /// Goes into the manifest and comes back from [`crate::Checkpoint::state`]. JSON has no infinity
    /// and no NaN: `serde_json` turns them into null.
    pub state: Value,
    /// How long to wait for the slowest writer.
    pub deadline: Duration,
}

/// A checkpoint that is durable.
#[derive(Debug)]
pub struct Committed {
    /// The checkpoint's directory.
    pub path: PathBuf,
    /// Bytes of all shards.
    pub bytes: u64,
    /// What failed once it was durable, to be told: `LATEST` was not updated (a hint for people and
    /// scripts, which discovery does not read), or a replaced checkpoint was not removed (the next
    /// [`crate::retain`] tries again).
    pub warning: Option<CheckpointError>,
}

/// Makes the empty directory for the attempt to save `step`, and returns it.
///
/// What an earlier attempt at the same step left is removed first: the caller sees to it that no
/// writer is still at work there, and that no writer starts before this returns (a barrier does
/// both). One run writes to one `checkpoints_dir`.
pub fn begin(checkpoints_dir: &Path, step: u64) -> Result<PathBuf> {
    if !checkpoints_dir.exists() {
        fs::create_dir_all(checkpoints_dir)?;
        // `canonicalize`, because the parent of a relative path may be the empty path.
        if let Some(parent) = fs::canonicalize(checkpoints_dir)?.parent() {
            sync_directory(parent)?;
        }
    }
    let path = temporary_path(checkpoints_dir, step);
    abandon(&path)?;
    fs::create_dir(&path).map_err(|error| name_lack_of_space(error, &path, 0))?;
    Ok(path)
}

/// Removes a failed attempt, if it is there.
pub fn abandon(temporary_dir: &Path) -> Result<()> {
    let name = temporary_dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    if !name.starts_with(TEMPORARY) {
        return Err(CheckpointError::damaged(
            temporary_dir,
            "not an attempt: it is left alone",
        ));
    }
    match fs::remove_dir_all(temporary_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other?),
    }
}

/// Waits for every writer, checks what they wrote against the plan and against each other, and turns
/// the attempt into the checkpoint of its step.
///
/// A checkpoint of the same step that is already there is replaced: exchanged in one step where the
/// file system can (a crash leaves the old or the new one), else moved aside first (a crash in between
/// leaves the checkpoint before it). After an error nothing has changed but the attempt, which the
/// caller abandons, unless the error names the sync of the parent directory: then the checkpoint is
/// there and may or may not survive a loss of power.
pub fn commit(temporary_dir: &Path, info: &CommitInfo<'_>) -> Result<Committed> {
    let records = wait_for_records(temporary_dir, info)?;
    check_shards(temporary_dir, &records)?;
    check_replicas(info.step, &records)?;
    let bytes = records.iter().map(|record| record.length).sum();
    let manifest = Manifest {
        format: FORMAT,
        step: info.step,
        tensors: info.plan.tensors().to_vec(),
        writers: records,
        state: info.state.clone(),
    };
    let path = temporary_dir.join(MANIFEST);
    write_file(&path, &encode_and_check(&path, &manifest, info.plan)?)?;
    sync_directory(temporary_dir)?;

    let checkpoints_dir = temporary_dir.parent().unwrap_or(Path::new("."));
    let committed = committed_path(checkpoints_dir, info.step);
    let replaced = move_into_place(temporary_dir, &committed)?;
    sync_directory(checkpoints_dir)?;
    let hint = format!("{}\n", directory_name(info.step));
    let hinted = write_file(&checkpoints_dir.join(LATEST), hint.as_bytes());
    let removed = replaced.map_or(Ok(()), |replaced| remove_through_trash(&replaced));
    Ok(Committed {
        path: committed,
        bytes,
        warning: hinted.and(removed).err(),
    })
}

fn wait_for_records(directory: &Path, info: &CommitInfo<'_>) -> Result<Vec<WriterRecord>> {
    let begun = Instant::now();
    let plan_hash = info.plan.hash();
    let mut records = BTreeMap::new();
    loop {
        // One listing instead of a question per writer; a record appears under its name only whole.
        let present = list(directory)?;
        let mut missing = Vec::new();
        for writer in 0..info.plan.writers() {
            if records.contains_key(&writer) {
                continue;
            }
            let name = record_name(writer);
            if !present.contains(OsStr::new(&name)) {
                missing.push(writer);
                continue;
            }
            let path = directory.join(name);
            let record = WriterRecord::parse(&path, &read_file(&path)?)?;
            record
                .check(writer)
                .map_err(|reason| CheckpointError::damaged(&path, reason))?;
            if record.plan != plan_hash {
                return Err(CheckpointError::PlanDiffers { writer, path });
            }
            records.insert(writer, record);
        }
        if missing.is_empty() {
            return Ok(records.into_values().collect());
        }
        if begun.elapsed() >= info.deadline {
            return Err(CheckpointError::WritersMissing {
                path: directory.to_owned(),
                missing,
                waited: begun.elapsed(),
            });
        }
        thread::sleep(POLL);
    }
}

fn list(directory: &Path) -> Result<HashSet<OsString>> {
    let mut names = HashSet::new();
    for entry in fs::read_dir(directory)? {
        names.insert(entry?.file_name());
    }
    Ok(names)
}

/// Whether every shard is there with the length of its record.
fn check_shards(directory: &Path, records: &[WriterRecord]) -> Result<()> {
    for record in records {
        let path = directory.join(&record.file);
        let length = fs::metadata(&path)
            .map_err(|error| name_absence(error, &path))?
            .len();
        if length != record.length {
            return Err(CheckpointError::damaged(
                path,
                format!("it has {length} bytes, {} were written", record.length),
            ));
        }
    }
    Ok(())
}

fn check_replicas(step: u64, records: &[WriterRecord]) -> Result<()> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for record in records {
        if let Some(hash) = &record.memory_hash {
            groups.entry(hash).or_default().push(record.writer);
        }
    }
    if groups.len() <= 1 {
        return Ok(());
    }
    let mut groups: Vec<_> = (groups.into_iter())
        .map(|(hash, writers)| (hash.to_owned(), writers))
        .collect();
    groups.sort_by_key(|(_, writers)| std::cmp::Reverse(writers.len()));
    Err(CheckpointError::ReplicasDiffer { step, groups })
}

/// The manifest's bytes, once they have proved to be readable: a state that nests too deeply, say,
/// must not be found out at the resume.
fn encode_and_check(path: &Path, manifest: &Manifest, plan: &Plan) -> Result<Vec<u8>> {
    let bytes = manifest.encode();
    let invalid = |reason: String| {
        Err(CheckpointError::InvalidState {
            step: manifest.step,
            reason,
        })
    };
    if bytes.len() as u64 > MAX_JSON {
        return invalid(format!("the manifest would have {} bytes", bytes.len()));
    }
    match Manifest::parse(path, &bytes) {
        Ok((read, read_plan)) if read == *manifest && read_plan == *plan => Ok(bytes),
        Ok(_) => invalid("it is read back with other values".to_owned()),
        Err(error) => invalid(error.to_string()),
    }
}

/// Renames `from` to `to`, and returns where what was there before lies now.
fn move_into_place(from: &Path, to: &Path) -> Result<Option<PathBuf>> {
    if fs::symlink_metadata(to).is_err() {
        fs::rename(from, to)?;
        return Ok(None);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(Some(from.to_owned())),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let trash = move_to_trash(to)?;
            fs::rename(from, to).inspect_err(|_| {
                // Back to what it was; the error at hand matters more than one of this.
                let _ = fs::rename(&trash, to);
            })?;
            Ok(Some(trash))
        }
        Err(error) => {
            let error = io::Error::from(error);
            let words = format!(
                "failed to exchange {} and {}: {error}",
                from.display(),
                to.display()
            );
            Err(io::Error::new(error.kind(), words).into())
        }
    }
}
