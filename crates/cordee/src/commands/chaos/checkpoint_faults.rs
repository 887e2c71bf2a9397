//! Checkpoints that are damaged where they lie, found out when a rank is killed and the run goes back to them.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use cordee_checkpoint::{Checkpoint, temporary_path};
use cordee_metrics::{EventKind, unix_time};
use fs_err as fs;
use rustix::process::Signal;

use super::{
    kind::FaultKind,
    processes::GRACE,
    rank_faults::{KILLED, judge},
    records::Attempt,
    schedule::{Draws, Fault},
    trial::{Halt, Trial},
};

/// How often it is tried to find the run between two saves.
const TICK: Duration = Duration::from_millis(20);

/// A checkpoint that was damaged, and the one before it.
struct Damaged {
    newest: PathBuf,
    before: PathBuf,
}

impl Trial {
    /// Damages the newest checkpoint and kills a rank.
    pub(super) fn damaged_checkpoint(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let begun = unix_time();
        let (attempt, damaged) = self.damage_and_kill(fault)?;
        let ending = self.ending(attempt.number)?;
        let next = self.recovered(attempt.number)?;
        let (words, right) = judge(&ending, fault.rank, KILLED);
        let Damaged { newest, before } = &damaged;
        let name = file_name(newest);
        let mut wrong = Vec::new();
        let went_back = next.checkpoint.as_deref().map(Path::new).map(file_name);
        if went_back.as_deref() != Some(&*file_name(before)) {
            wrong.push(format!(
                "went back to {}, should be {}",
                went_back.as_deref().unwrap_or("the start"),
                file_name(before)
            ));
        }
        let set_aside = self.set_aside();
        if !set_aside
            .iter()
            .any(|path| file_name(path).ends_with(&name))
        {
            wrong.push(format!("{name} was not set aside"));
        }
        let warned = self.records.events_since(begun).any(
            |event| matches!(&event.event, EventKind::Warning { text, .. } if text.contains(&name)),
        );
        if !warned {
            wrong.push(format!("no warning names {name}"));
        }
        for path in set_aside {
            // Nobody needs it any more, and it takes room.
            let _ = fs::remove_dir_all(path);
        }
        if wrong.is_empty() {
            let step = file_name(before).replace("step-", "");
            let step = step.trim_start_matches('0');
            return Ok((format!("{words}, back to step {step}"), right));
        }
        wrong.insert(0, words);
        Ok((wrong.join(", "), false))
    }

    /// Stops the rank for a moment: no save ends without it, so that the checkpoint stays the newest.
    fn damage_and_kill(&mut self, fault: &Fault) -> Result<(Attempt, Damaged), Halt> {
        let patience = self.pace.steps(3 * self.shape.every);
        let begun = Instant::now();
        loop {
            self.wait_for("two checkpoints", patience, |records| {
                (records.committed().len() >= 2 && records.half_written().is_empty()).then_some(())
            })?;
            let attempt = self.attempt()?;
            let rank = self.rank(&attempt, fault.rank)?;
            rank.signal(Signal::STOP)?;
            let stopping = Instant::now();
            while !rank.is_stopped() && stopping.elapsed() < GRACE {
                self.pause(Duration::from_millis(1))?;
            }
            let committed = self.records.committed();
            // With nothing half-written no save is under way, and none begins without this rank.
            if let ([newest, before, ..], true) =
                (&committed[..], self.records.half_written().is_empty())
            {
                let damaged = damage(newest, fault);
                self.hit();
                rank.signal(Signal::KILL)?;
                damaged.map_err(|error| format!("the checkpoint stays as it is: {error:#}"))?;
                let (newest, before) = (newest.clone(), before.clone());
                return Ok((attempt, Damaged { newest, before }));
            }
            rank.signal(Signal::CONT)?;
            if begun.elapsed() > patience {
                return Err("the run is always at a save".into());
            }
            self.pause(TICK)?;
        }
    }

    /// Checkpoints that the run put out of the way.
    fn set_aside(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.records.checkpoints()) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| file_name(path).starts_with("left-"))
            .collect()
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Damages a checkpoint as the fault says.
fn damage(checkpoint: &Path, fault: &Fault) -> anyhow::Result<()> {
    let opened = Checkpoint::open(checkpoint)?;
    let mut draws = Draws(fault.seed);
    let writers = opened.writers();
    let shard = &writers[draws.below(writers.len() as u64) as usize];
    let path = checkpoint.join(&shard.file);
    if fault.kind == FaultKind::CorruptedCheckpoint {
        return change_a_byte(&path, &mut draws);
    }
    let file = fs::OpenOptions::new().write(true).open(&path)?;
    file.set_len(shard.length / 2)?;
    // What a save leaves that is cut short: the one that comes in its place finds it in its way.
    let dir = checkpoint
        .parent()
        .context("a checkpoint lies in a directory")?;
    let attempt = temporary_path(dir, opened.step());
    fs::create_dir_all(&attempt)?;
    fs::write(attempt.join(&shard.file), [0; 4096])?;
    Ok(())
}

/// Changes one bit somewhere in the second half of a file, where its tensors are.
fn change_a_byte(path: &Path, draws: &mut Draws) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    if length == 0 {
        return Err(anyhow!("{} is empty", path.display()));
    }
    let at = length / 2 + draws.below(length - length / 2);
    let mut byte = [0];
    file.file().read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << draws.below(8);
    file.file().write_all_at(&byte, at)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_another() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for seed in 0..50 {
            fs::write(file.path(), [7; 101]).unwrap();
            change_a_byte(file.path(), &mut Draws(seed)).unwrap();
            let bytes = fs::read(file.path()).unwrap();
            let changed: Vec<_> = (0..101).filter(|at| bytes[*at] != 7).collect();
            assert!(changed.len() == 1 && changed[0] >= 50, "{changed:?}");
        }
    }
}
