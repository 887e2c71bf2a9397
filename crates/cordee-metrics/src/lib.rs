//! Records of what happened in a run, and the sinks that write them.
//!
//! A run directory holds `metrics.jsonl` (one [`StepRecord`] a line), `events.jsonl` (one
//! [`Event`] a line, everything that is not a step) and, if wanted, `TensorBoard` event files in
//! `tb/`. A [`Recorder`] takes records from the training loop and writes them on threads of its
//! own, so that no sink ever blocks a step. The two JSON files never lose a line: what a full disk
//! refuses stays in memory until there is room. Other sinks drop what they cannot keep up with,
//! and count it.
//!
//! The launcher has records of its own: [`Attempts`] and [`RunStatus`]; [`RunFigures`] is how a run
//! stands as Prometheus collects it.
//!
//! This crate does not know what a model, a rank process or a console is, and decides nothing.

#![forbid(unsafe_code)]

mod attempts;
mod cut;
mod documented;
mod error;
mod event;
mod jsonl;
mod lossy;
mod number;
mod prometheus;
mod read;
mod record;
mod recorder;
mod reference;
mod tensorboard;

pub use attempts::{
    ATTEMPTS_FILE, AttemptEvent, AttemptRecord, Attempts, FailureRecord, Ledger, NodeStatus,
    Outcome, RankStatus, RunState, RunStatus, STATUS_FILE,
};
pub use error::MetricsError;
pub use event::{Event, EventKind, SourceEvaluation};
pub use jsonl::JsonLines;
pub use prometheus::{Exposition, RunFigures, TrainingFigures};
pub use read::{last_step, read_events, read_steps};
pub use record::{StepRecord, TIMING_FIELDS};
pub use recorder::{EVENTS_FILE, METRICS_FILE, Recorder, TENSORBOARD_FOLDER, append_event};
pub use reference::reference;
pub use tensorboard::TensorBoard;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, as records state their time.
pub fn unix_time() -> f64 {
    // A clock set before 1970 is no reason to stop a run.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
