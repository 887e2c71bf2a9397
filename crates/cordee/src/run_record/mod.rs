//! What a run directory tells of its run, be the run under way, over or cut short.
//!
//! Nothing here fails: a file that is missing or torn leaves out what it would have told.

mod read;
mod standing;

use std::path::PathBuf;

use cordee_checkpoint::{self as checkpoint, CandidateKind};
use cordee_metrics::{
    AttemptEvent, AttemptRecord, Attempts, EVENTS_FILE, Event, EventKind, Ledger, METRICS_FILE,
    RunStatus, StepRecord, unix_time,
};
use fs_err as fs;
use serde::Deserialize;

use self::read::{last_lines, lines};
pub(crate) use self::standing::{Launcher, Standing};
use crate::run_dir::RunDir;

/// How many of the last steps are read.
const LAST_STEPS: usize = 10;

/// What is known about a run.
#[derive(Debug)]
pub(crate) struct RunRecord {
    pub(crate) run: RunDir,
    pub(crate) environment: Environment,
    /// The resolved config; empty where it is none.
    pub(crate) config: toml::Table,
    /// The last optimizer steps, the newest at the end.
    pub(crate) last_steps: Vec<StepRecord>,
    pub(crate) events: Vec<Event>,
    pub(crate) attempts: Vec<AttemptRecord>,
    /// What its launcher wrote last.
    pub(crate) status: Option<RunStatus>,
    /// Whether its launcher is there.
    pub(crate) launcher: Launcher,
    /// Its committed checkpoints and their steps, the newest first.
    pub(crate) checkpoints: Vec<(u64, PathBuf)>,
    /// When it was read, in seconds since 1970.
    pub(crate) now: f64,
}

/// What the last start of the run noted of its surroundings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Environment {
    pub(crate) version: String,
    pub(crate) host: String,
    pub(crate) attempt: usize,
    pub(crate) ranks: usize,
    pub(crate) device: String,
    pub(crate) started: String,
    pub(crate) command: Vec<String>,
}

impl RunRecord {
    /// Reads what there is.
    pub(crate) fn read(run: RunDir) -> Self {
        let path = run.path();
        let text = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
        let environment: Environment = serde_json::from_str(&text("env.json")).unwrap_or_default();
        let status = RunStatus::read(path);
        let host = status.as_ref().map_or(&environment.host, |it| &it.host);
        let found = checkpoint::discover(&run.checkpoints()).unwrap_or_default();
        let committed = found
            .into_iter()
            .filter(|it| it.kind == CandidateKind::Committed);
        Self {
            config: text("config.toml").parse().unwrap_or_default(),
            last_steps: last_lines(&path.join(METRICS_FILE), LAST_STEPS),
            events: lines(&path.join(EVENTS_FILE)),
            attempts: lines(&Attempts::path(path)),
            launcher: Launcher::find(&run, host),
            checkpoints: committed.map(|it| (it.step, it.path)).collect(),
            now: unix_time(),
            environment,
            status,
            run,
        }
    }

    /// What it is called.
    pub(crate) fn name(&self) -> String {
        let name = self.run.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Seconds since its launcher last told how it stands.
    pub(crate) fn status_age(&self) -> Option<f64> {
        let status = self.status.as_ref()?;
        Some((self.now - status.time).max(0.0))
    }

    /// Optimizer steps done, and how many it is to have where that is known.
    pub(crate) fn steps(&self) -> (u64, Option<u64>) {
        let told = self.attempts.iter().rev().find_map(|it| match it.event {
            AttemptEvent::Ended { step, .. } => Some(step),
            AttemptEvent::Started { .. } => None,
        });
        let last = self.last_steps.last().map(|it| it.step);
        (last.or(told).unwrap_or(0), self.planned_steps())
    }

    fn planned_steps(&self) -> Option<u64> {
        let told = self.events.iter().rev().find_map(|it| match it.event {
            EventKind::RunStarted { steps, .. } | EventKind::Resumed { steps, .. } => Some(steps),
            _ => None,
        });
        let status = self.status.as_ref().map(|it| it.steps);
        let config = || self.config.get("train")?.get("steps")?.as_integer();
        let config = || config().and_then(|steps| u64::try_from(steps).ok());
        status.or(told).or_else(config)
    }

    /// When it began, in seconds since 1970.
    pub(crate) fn began(&self) -> Option<f64> {
        let started = || {
            let started: jiff::Zoned = self.environment.started.parse().ok()?;
            Some(started.timestamp().as_millisecond() as f64 / 1000.0)
        };
        let attempt = self.attempts.first().map(|it| it.time);
        let event = || self.events.first().map(|it| it.time);
        attempt.or_else(event).or_else(started)
    }

    /// How often it was started.
    pub(crate) fn starts(&self) -> usize {
        let told = self.attempts.iter().map(|it| it.attempt).max();
        told.unwrap_or(0).max(self.environment.attempt)
    }

    /// Where the time of all attempts went, the one under way included; none where nobody kept account.
    pub(crate) fn ledger(&self) -> Option<Ledger> {
        let ended = |attempt: &AttemptRecord| match &attempt.event {
            AttemptEvent::Ended { ledger, .. } => Some((attempt.attempt, *ledger)),
            AttemptEvent::Started { .. } => None,
        };
        let mut ledgers: Vec<(usize, Ledger)> = self.attempts.iter().filter_map(ended).collect();
        if let Some(status) = &self.status
            && ledgers.iter().all(|(attempt, _)| *attempt < status.attempt)
        {
            ledgers.push((status.attempt, status.ledger));
        }
        let sum = ledgers
            .iter()
            .map(|(_, it)| *it)
            .reduce(|one, other| one + other)?;
        (sum.total_s() > 0.0).then_some(sum)
    }

    /// Tokens a second over the last steps.
    pub(crate) fn throughput(&self) -> Option<f64> {
        let (first, last) = (self.last_steps.first()?, self.last_steps.last()?);
        if first.step == last.step {
            return Some(last.tokens_per_s).filter(|rate| rate.is_finite());
        }
        let seconds: f64 = self.last_steps[1..].iter().map(|it| it.step_s).sum();
        let rate = last.tokens.saturating_sub(first.tokens) as f64 / seconds;
        rate.is_finite().then_some(rate)
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
