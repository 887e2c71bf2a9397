//! Disks that refuse, and disks that are slow. None of that may end a run.

use std::{collections::BTreeSet, time::Duration};

use cordee_metrics::{EventKind, unix_time};

use super::{
    disk::SmallDisk,
    records::Records,
    schedule::Fault,
    strace::{Tampering, Tracer},
    trial::{Halt, Trial},
};

/// How much longer a call takes on a slow disk, unless a save has very many.
const DELAY: Duration = Duration::from_millis(100);

/// What the delays of a save may come to: less than what a hang is told by.
const DELAYS_OF_A_SAVE: Duration = Duration::from_millis(1500);

/// Bytes that a rank writes at once.
const BYTES_OF_A_WRITE: u64 = 4 << 20;

/// How much longer a slow save takes at least: a rank's share and its record are both synced.
const LEAST_DELAYS: u32 = 2;

/// A save that came to an end.
struct Save {
    step: u64,
    /// When it ended, in seconds since 1970.
    time: f64,
    /// What it took, of one that succeeded; else why it was refused.
    outcome: Result<f64, String>,
}

impl Trial {
    /// Takes all room until a save was refused, and gives it back.
    pub(super) fn full_disk(&mut self) -> Result<(String, bool), Halt> {
        let disk = self.disk.take().ok_or("there is no disk to fill")?;
        let told = self.full_until_refused(&disk);
        let freed = disk.free();
        self.disk = Some(disk);
        let save = told?;
        freed.map_err(|error| format!("the disk cannot be freed: {error}"))?;
        self.saved_again()?;
        Ok(match save.outcome {
            Err(why) if why.contains("no room") => {
                (format!("save of step {} refused: no room", save.step), true)
            }
            Err(why) => (
                format!(
                    "save of step {} refused, should be no room: {why}",
                    save.step
                ),
                false,
            ),
            Ok(_) => ("no save was refused".to_owned(), false),
        })
    }

    fn full_until_refused(&mut self, disk: &SmallDisk) -> Result<Save, Halt> {
        let begun = unix_time();
        let patience = self.pace.steps(2 * self.shape.every);
        let save = self.wait_for("a save that is refused", patience, |records| {
            // Again and again: a save that began before makes room at its end.
            if let Err(error) = disk.fill() {
                return Some(Err(format!("the disk cannot be filled: {error}")));
            }
            let saves = saves_since(records, begun);
            saves.into_iter().find(|save| save.outcome.is_err()).map(Ok)
        })?;
        Ok(save?)
    }

    /// Has every fsync of a rank fail until a save was refused.
    pub(super) fn failing_fsync(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let tracer = self.trace(fault, Tampering::FailingFsync)?;
        let begun = unix_time();
        let patience = self.pace.steps(2 * self.shape.every);
        let save = self.wait_for("a save that is refused", patience, |records| {
            saves_since(records, begun)
                .into_iter()
                .find(|save| save.outcome.is_err())
        });
        tracer.detach();
        let Save { step, outcome, .. } = save?;
        self.saved_again()?;
        let why = outcome.err().unwrap_or_default();
        Ok(if ranks_named(&why) == BTreeSet::from([fault.rank]) {
            (
                format!("save of step {step} refused by rank {}", fault.rank),
                true,
            )
        } else {
            (
                format!(
                    "save of step {step} refused, should be by rank {}: {why}",
                    fault.rank
                ),
                false,
            )
        })
    }

    /// Has a rank's calls to the disk take long during a save, which must succeed all the same.
    pub(super) fn slow_disk(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let share = self.pace.checkpoint_bytes / self.shape.ranks as u64;
        let writes = share.div_ceil(BYTES_OF_A_WRITE).max(1);
        let fitting = DELAYS_OF_A_SAVE / u32::try_from(writes).unwrap_or(u32::MAX);
        let delay = DELAY.min(fitting);
        let tracer = self.trace(fault, Tampering::Delay(delay))?;
        let begun = unix_time();
        let patience = self.pace.steps(2 * self.shape.every);
        let save = self.wait_for("a save that is slow", patience, |records| {
            let saves = saves_since(records, begun);
            // One that had begun before was slow in part only.
            saves.into_iter().find(|save| match &save.outcome {
                Ok(seconds) => save.time - seconds >= begun,
                Err(_) => true,
            })
        });
        tracer.detach();
        let Save { step, outcome, .. } = save?;
        Ok(match outcome {
            Ok(seconds) if seconds >= (delay * LEAST_DELAYS).as_secs_f64() => {
                (format!("step {step} saved in {seconds:.1} s"), true)
            }
            Ok(seconds) => (
                format!("step {step} saved in {seconds:.2} s, which is not slow"),
                false,
            ),
            Err(why) => (format!("save of step {step} refused: {why}"), false),
        })
    }

    fn trace(&mut self, fault: &Fault, tampering: Tampering) -> Result<Tracer, Halt> {
        let attempt = self.attempt()?;
        let rank = self.rank(&attempt, fault.rank)?;
        let tracer = Tracer::attach(rank.pid, tampering, &self.strace_log)?;
        self.hit();
        Ok(tracer)
    }

    /// Waits until a save succeeded.
    fn saved_again(&mut self) -> Result<(), Halt> {
        let begun = unix_time();
        let patience = self.pace.steps(2 * self.shape.every);
        self.wait_for("a save that succeeds", patience, |records| {
            saves_since(records, begun)
                .into_iter()
                .find(|save| save.outcome.is_ok())
        })
        .map(drop)
    }
}

/// The saves that ended from a time on.
fn saves_since(records: &mut Records, time: f64) -> Vec<Save> {
    let events = records.events_since(time);
    events
        .filter_map(|event| {
            let outcome = match &event.event {
                EventKind::CheckpointSaved { seconds, .. } => Ok(*seconds),
                EventKind::CheckpointFailed { reason } => Err(reason.clone()),
                _ => return None,
            };
            Some(Save {
                step: event.step,
                time: event.time,
                outcome,
            })
        })
        .collect()
}

/// The ranks that a refusal names, as `rank 2: why; rank 3: why`.
fn ranks_named(why: &str) -> BTreeSet<usize> {
    why.split("; ")
        .filter_map(|part| part.strip_prefix("rank ")?.split_once(':')?.0.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_ranks() {
        let why = "rank 1: failed to sync a: rank; rank 13: no room; clearing the attempt away: x";
        assert_eq!(ranks_named(why), BTreeSet::from([1, 13]));
        assert_eq!(ranks_named("no room"), BTreeSet::new());
    }
}
