//! The status page: where a worker stands, in memory that its launcher reads at any time, be the worker
//! running, stopped, stuck or dead.
//!
//! One page per worker, a few words of memory that both have mapped. The worker writes where it is as
//! it goes, for a few stores each time; the launcher asks nobody. One word goes the other way: the
//! request to stop, which so reaches a worker that handles no signal yet.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is known: it has not begun to tell, or never will.
    Unknown,
    /// Opening its device, and meeting the other ranks.
    Starting,
    /// Filling weights and moments.
    Loading,
    /// An optimizer step.
    Training,
    /// An optimizer step that was done before, by an attempt that failed.
    Recomputing,
    /// A validation.
    Evaluating,
    /// Saving a checkpoint.
    Saving,
    /// What comes after the last step.
    Concluding,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Starting,
        Self::Loading,
        Self::Training,
        Self::Recomputing,
        Self::Evaluating,
        Self::Saving,
        Self::Concluding,
    ];

    /// What a worker is doing, as the rest of a sentence that begins with `it is`.
    pub const fn doing(self) -> &'static str {
        match self {
            Self::Unknown => "not yet heard of",
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Training => "training",
            Self::Recomputing => "recomputing",
            Self::Evaluating => "evaluating",
            Self::Saving => "saving",
            Self::Concluding => "concluding",
        }
    }

    /// Whether it is a step.
    pub fn is_step(self) -> bool {
        matches!(self, Self::Training | Self::Recomputing)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.doing())
    }
}

/// Marks a page that a worker of this version writes.
const MAGIC: u64 = u64::from_be_bytes(*b"status\0\x01");

/// Where things are on the page.
mod word {
    pub(super) const MAGIC: usize = 0;
    pub(super) const PHASE: usize = 1;
    pub(super) const STEP: usize = 2;
    pub(super) const PHASE_SINCE: usize = 3;
    pub(super) const PROGRESS_AT: usize = 4;
    pub(super) const BEGUN: usize = 5;
    pub(super) const COMPLETED: usize = 6;
    pub(super) const OPERATION: usize = 7;
    pub(super) const BYTES: usize = 9;
    pub(super) const CALL_SINCE: usize = 10;
    pub(super) const STOP: usize = 11;
    /// Nanoseconds of each phase.
    pub(super) const TOTALS: usize = 12;
}

/// Bytes of an operation's name.
const NAME_BYTES: usize = 16;

/// A page, as worker and launcher hold it; clones are the same page.
#[derive(Clone)]
pub struct StatusPage {
    words: Arc<dyn AsRef<[AtomicU64]> + Send + Sync>,
}

impl fmt::Debug for StatusPage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("StatusPage")
            .field(&self.read())
            .finish()
    }
}

/// What a page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the worker is doing.
    pub phase: Phase,
    /// The step that it is at: of a step, its number; of anything else, the steps done.
    pub step: u64,
    /// How long it has been doing that.
    pub phase_for: Duration,
    /// How long nothing on the page has changed.
    pub quiet_for: Duration,
    /// The last collective that it began.
    pub call: Option<CallStatus>,
    /// How long it was in each phase, those that are over, in the order of [`Phase::ALL`].
    pub phases: [Duration; Phase::ALL.len()],
}

/// A collective, as a page tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallStatus {
    /// Its place in the order of the group's calls.
    pub sequence: u64,
    /// What is done.
    pub operation: String,
    /// Bytes that it is about, on each rank.
    pub bytes: u64,
    /// The last call that is done, with all before it.
    pub completed: u64,
    /// How long ago it was begun.
    pub ago: Duration,
}

impl CallStatus {
    /// Whether the worker waits in it.
    pub fn is_under_way(&self) -> bool {
        self.completed < self.sequence
    }
}

impl fmt::Display for CallStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} #{}", self.operation, self.sequence)?;
        match self.bytes {
            0 => Ok(()),
            bytes => write!(formatter, " of {bytes} bytes"),
        }
    }
}

impl StatusPage {
    /// Words of a page.
    pub const WORDS: usize = word::TOTALS + Phase::ALL.len();

    /// The page in these words, of which there must be [`Self::WORDS`].
    pub fn new(words: Arc<dyn AsRef<[AtomicU64]> + Send + Sync>) -> Self {
        assert!(
            (*words).as_ref().len() >= Self::WORDS,
            "a status page takes {} words",
            Self::WORDS
        );
        Self { words }
    }

    /// A page that nobody else sees.
    pub fn private() -> Self {
        let words: Vec<AtomicU64> = (0..Self::WORDS).map(|_| AtomicU64::new(0)).collect();
        Self::new(Arc::new(words))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &(*self.words).as_ref()[index]
    }

    fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Relaxed);
    }

    /// Says that the worker goes over to `phase` at `step`. By the thread that leads the worker.
    pub fn enter(&self, phase: Phase, step: u64) {
        let now = now();
        let before = self.get(word::PHASE) as usize;
        if self.get(word::MAGIC) == MAGIC && before < Phase::ALL.len() {
            let spent = now.saturating_sub(self.get(word::PHASE_SINCE));
            let total = self.word(word::TOTALS + before);
            total.fetch_add(spent, Ordering::Relaxed);
        }
        self.set(word::STEP, step);
        self.set(word::PHASE, phase as u64);
        self.set(word::PHASE_SINCE, now);
        self.set(word::PROGRESS_AT, now);
        self.word(word::MAGIC).store(MAGIC, Ordering::Release);
    }

    /// Says that the worker has come a little further within a phase.
    pub fn progress(&self) {
        self.set(word::PROGRESS_AT, now());
    }

    /// Says that the worker begins a collective. By the thread that makes the calls.
    pub fn call_begun(&self, sequence: u64, operation: &str, bytes: u64) {
        let now = now();
        let mut name = [0; NAME_BYTES];
        let len = operation.len().min(NAME_BYTES);
        name[..len].copy_from_slice(&operation.as_bytes()[..len]);
        let (first, second) = name.split_at(NAME_BYTES / 2);
        self.set(word::BEGUN, 0);
        // Who sees any of what follows sees the zero.
        fence(Ordering::Release);
        for (index, half) in [first, second].into_iter().enumerate() {
            let half = u64::from_le_bytes(half.try_into().expect("half of a name is 8 bytes"));
            self.set(word::OPERATION + index, half);
        }
        self.set(word::BYTES, bytes);
        self.set(word::CALL_SINCE, now);
        self.word(word::BEGUN).store(sequence, Ordering::Release);
        self.set(word::PROGRESS_AT, now);
    }

    /// Says that all collectives up to this one are done.
    pub fn call_completed(&self, sequence: u64) {
        self.set(word::COMPLETED, sequence);
        self.progress();
    }

    /// Asks the worker to stop at its next step.
    pub fn request_stop(&self) {
        self.set(word::STOP, 1);
    }

    /// Whether the worker was asked to stop.
    pub fn stop_requested(&self) -> bool {
        self.get(word::STOP) != 0
    }

    /// What the page says now.
    pub fn read(&self) -> Status {
        let now = now();
        let since = |time: u64| Duration::from_nanos(now.saturating_sub(time));
        let told = self.word(word::MAGIC).load(Ordering::Acquire) == MAGIC;
        if !told {
            return Status {
                phase: Phase::Unknown,
                step: 0,
                phase_for: Duration::ZERO,
                quiet_for: Duration::ZERO,
                call: None,
                phases: [Duration::ZERO; Phase::ALL.len()],
            };
        }
        let phase = Phase::ALL.get(self.get(word::PHASE) as usize);
        Status {
            phase: phase.copied().unwrap_or(Phase::Unknown),
            step: self.get(word::STEP),
            phase_for: since(self.get(word::PHASE_SINCE)),
            quiet_for: since(self.get(word::PROGRESS_AT)),
            call: self.call(now),
            phases: std::array::from_fn(|phase| {
                Duration::from_nanos(self.get(word::TOTALS + phase))
            }),
        }
    }

    /// A number that changes whenever the worker says anything.
    pub fn pulse(&self) -> u64 {
        self.get(word::PROGRESS_AT)
    }

    fn call(&self, now: u64) -> Option<CallStatus> {
        // A worker that dies in the few stores between leaves 0 behind: then no call is told.
        let sequence = self.word(word::BEGUN).load(Ordering::Acquire);
        if sequence == 0 {
            return None;
        }
        let name: Vec<u8> = (0..2)
            .flat_map(|index| self.get(word::OPERATION + index).to_le_bytes())
            .take_while(|&byte| byte != 0)
            .collect();
        let call = CallStatus {
            sequence,
            operation: String::from_utf8_lossy(&name).into_owned(),
            bytes: self.get(word::BYTES),
            completed: self.get(word::COMPLETED),
            ago: Duration::from_nanos(now.saturating_sub(self.get(word::CALL_SINCE))),
        };
        fence(Ordering::Acquire);
        (self.get(word::BEGUN) == sequence).then_some(call)
    }
}

/// Nanoseconds of a clock that all processes of a machine share and that nobody sets.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn a_page_that_nobody_wrote_says_nothing() {
        let status = StatusPage::private().read();
        assert_eq!((status.phase, status.call), (Phase::Unknown, None));
    }

    #[test]
    fn what_is_written_is_read() {
        let page = StatusPage::private();
        page.enter(Phase::Starting, 0);
        sleep(Duration::from_millis(5));
        page.enter(Phase::Training, 7);
        page.call_begun(41, "reduce_scatter", 1 << 20);
        let status = page.clone().read();
        assert_eq!((status.phase, status.step), (Phase::Training, 7));
        let starting = status.phases[Phase::Starting as usize];
        assert!(starting >= Duration::from_millis(5), "{starting:?}");
        assert_eq!(status.phases[Phase::Training as usize], Duration::ZERO);
        let call = status.call.unwrap();
        assert_eq!(call.operation, "reduce_scatter");
        assert_eq!((call.sequence, call.bytes), (41, 1 << 20));
        assert!(call.is_under_way());
        page.call_completed(41);
        assert!(!page.read().call.unwrap().is_under_way());
    }

    #[test]
    fn a_worker_that_does_nothing_is_quiet() {
        let page = StatusPage::private();
        page.enter(Phase::Loading, 0);
        let pulse = page.pulse();
        sleep(Duration::from_millis(5));
        assert_eq!(page.pulse(), pulse);
        assert!(page.read().quiet_for >= Duration::from_millis(5));
        page.progress();
        assert_ne!(page.pulse(), pulse);
    }

    #[test]
    fn the_request_to_stop_goes_the_other_way() {
        let page = StatusPage::private();
        assert!(!page.stop_requested());
        page.request_stop();
        assert!(page.clone().stop_requested());
    }

    #[test]
    fn phases_are_numbered_in_order() {
        for (number, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, number);
        }
    }
}
