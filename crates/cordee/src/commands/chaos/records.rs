//! What a run under way has written so far.

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::SystemTime,
};

use cordee_checkpoint::{CandidateKind, discover};
use cordee_metrics::{
    AttemptEvent, AttemptRecord, Attempts, EVENTS_FILE, Event, FailureRecord, Ledger, METRICS_FILE,
    MetricsError, Outcome, RunStatus, StepRecord, read_events,
};

/// Bytes at the end of the metrics that hold the last line, and more.
const LAST_LINES: u64 = 8192;

/// The records of a run, read again when they have changed.
pub(super) struct Records {
    dir: PathBuf,
    attempts: Kept<AttemptRecord>,
    events: Kept<Event>,
}

/// A file's records, and what it was like when they were read.
struct Kept<T> {
    read: Vec<T>,
    of: Option<(u64, SystemTime)>,
}

impl<T> Kept<T> {
    const NONE: Self = Self {
        read: Vec::new(),
        of: None,
    };

    /// Reads the file if it is another. One that cannot be read is being replaced, and what was read before holds.
    fn update(&mut self, path: &Path, read: impl FnOnce() -> Result<Vec<T>, MetricsError>) -> &[T] {
        let now = fs_err::metadata(path)
            .and_then(|file| Ok((file.len(), file.modified()?)))
            .ok();
        if (now.is_none() || now != self.of)
            && let Ok(records) = read()
        {
            self.read = records;
            self.of = now;
        }
        &self.read
    }
}

/// An attempt that was started.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) number: usize,
    /// When, in seconds since 1970.
    pub(super) time: f64,
    /// Processes of the ranks.
    pub(super) pids: Vec<u32>,
    /// The checkpoint that it went on from.
    pub(super) checkpoint: Option<String>,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) outcome: Outcome,
    pub(super) failure: Option<FailureRecord>,
}

impl Records {
    pub(super) fn of(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            attempts: Kept::NONE,
            events: Kept::NONE,
        }
    }

    /// The last step that is done, and when.
    pub(super) fn last_step(&self) -> Option<(u64, f64)> {
        let mut file = fs_err::File::open(self.dir.join(METRICS_FILE)).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINES)))
            .ok()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        // What follows the last line feed is still being written.
        let end = text.iter().rposition(|byte| *byte == b'\n')?;
        let line = text[..end].rsplit(|byte| *byte == b'\n').next()?;
        let step: StepRecord = serde_json::from_slice(line).ok()?;
        Some((step.step, step.time))
    }

    /// The last attempt that was started.
    pub(super) fn last_attempt(&mut self) -> Option<Attempt> {
        self.attempts()
            .iter()
            .rev()
            .find_map(|record| match &record.event {
                AttemptEvent::Started {
                    pids, checkpoint, ..
                } => Some(Attempt {
                    number: record.attempt,
                    time: record.time,
                    pids: pids.clone(),
                    checkpoint: checkpoint.clone(),
                }),
                AttemptEvent::Ended { .. } => None,
            })
    }

    /// How an attempt ended; none if it has not.
    pub(super) fn ending(&mut self, attempt: usize) -> Option<Ending> {
        let records = self.attempts().iter().rev();
        records
            .filter(|record| record.attempt == attempt)
            .find_map(|record| match &record.event {
                AttemptEvent::Ended {
                    outcome, failure, ..
                } => Some(Ending {
                    outcome: *outcome,
                    failure: failure.clone(),
                }),
                AttemptEvent::Started { .. } => None,
            })
    }

    /// How many attempts were started, and where the time of those that ended went.
    pub(super) fn ledger(&mut self) -> (usize, Ledger) {
        let (mut started, mut total) = (0, Ledger::default());
        for record in self.attempts() {
            match &record.event {
                AttemptEvent::Started { .. } => started += 1,
                AttemptEvent::Ended { ledger, .. } => total += *ledger,
            }
        }
        (started, total)
    }

    /// Events from a time on, in seconds since 1970.
    pub(super) fn events_since(&mut self, time: f64) -> impl Iterator<Item = &Event> {
        let (path, dir) = (self.dir.join(EVENTS_FILE), &self.dir);
        let events = self
            .events
            .update(&path, || read_events(&dir.join(EVENTS_FILE)));
        events.iter().filter(move |event| event.time >= time)
    }

    /// How the run stands, as its launcher last said.
    pub(super) fn status(&self) -> Option<RunStatus> {
        RunStatus::read(&self.dir)
    }

    /// The directory of checkpoints.
    pub(super) fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// Checkpoints that were committed, the newest first.
    pub(super) fn committed(&self) -> Vec<PathBuf> {
        let found = discover(&self.checkpoints()).unwrap_or_default();
        let committed = found
            .into_iter()
            .filter(|it| it.kind == CandidateKind::Committed);
        committed.map(|candidate| candidate.path).collect()
    }

    /// What saves left that were never committed.
    pub(super) fn half_written(&self) -> Vec<PathBuf> {
        let found = discover(&self.checkpoints()).unwrap_or_default();
        let half = found
            .into_iter()
            .filter(|it| it.kind == CandidateKind::HalfWritten);
        half.map(|candidate| candidate.path).collect()
    }

    fn attempts(&mut self) -> &[AttemptRecord] {
        let (path, dir) = (Attempts::path(&self.dir), &self.dir);
        self.attempts.update(&path, || Attempts::read(dir))
    }
}
