//! What the launcher writes down of a run: `attempts.jsonl`.

use cordee_launch::FailureReport;
use cordee_metrics::{
    ATTEMPTS_FILE, AttemptEvent, AttemptRecord, Attempts, FailureRecord, Ledger, METRICS_FILE,
    Outcome, RunStatus, last_step, unix_time,
};

use crate::{commands::nodes::Part, console::Console, run_dir::RunDir};

/// The record of a run's attempts. A disk that refuses costs the record and not the run.
pub(super) struct Records {
    file: Option<Attempts>,
}

impl Records {
    /// Opens the record of a run, and says where the time of its attempts has gone so far. Of an
    /// attempt that has no end, its launcher was killed: that is written down now.
    pub(super) fn open(run: &RunDir, console: &mut Console) -> (Self, Ledger) {
        let known = Attempts::read(run.path()).unwrap_or_default();
        let file = Attempts::open(run.path())
            .inspect_err(|error| {
                console.warning(&format!("{ATTEMPTS_FILE} is not written: {error}"));
            })
            .ok();
        let mut records = Self { file };
        let mut ledger = Ledger::default();
        for record in &known {
            if let AttemptEvent::Ended { ledger: spent, .. } = record.event {
                ledger += spent;
            }
        }
        if let Some(last) = known.last()
            && let AttemptEvent::Started { .. } = last.event
        {
            let lost = lost(run, last);
            ledger += lost;
            let event = AttemptEvent::Ended {
                outcome: Outcome::Lost,
                step: last_step(&run.path().join(METRICS_FILE)).unwrap_or(0),
                failure: None,
                decision: None,
                ledger: lost,
            };
            records.push(last.attempt, event, console);
        }
        (records, ledger)
    }

    pub(super) fn push(&mut self, attempt: usize, event: AttemptEvent, console: &mut Console) {
        let record = AttemptRecord::now(attempt, event);
        if let Some(file) = &mut self.file
            && let Err(error) = file.push(&record)
        {
            console.warning(&format!("{ATTEMPTS_FILE} is not complete: {error}"));
        }
    }
}

/// Where the time of an attempt went whose launcher was killed: what the last status said, and the time
/// since.
fn lost(run: &RunDir, started: &AttemptRecord) -> Ledger {
    let status = RunStatus::read(run.path()).filter(|status| status.attempt == started.attempt);
    let (mut ledger, until) =
        status.map_or((Ledger::default(), started.time), |it| (it.ledger, it.time));
    ledger.down_s += (unix_time() - until).max(0.0);
    ledger
}

/// The node that a failure was on, if there are several and it was one alone.
pub(super) fn guilty_part<'a>(report: &FailureReport, parts: &'a [Part]) -> Option<&'a Part> {
    if let Some(lost) = &report.lost {
        return parts.iter().find(|part| part.node == lost.node);
    }
    let rank = report.guilty()?;
    parts.iter().find(|part| part.ranks.contains(&rank))
}

/// A failure, as it is recorded.
pub(super) fn failure(report: &FailureReport, parts: &[Part]) -> FailureRecord {
    let rank = report.guilty();
    let of_hang = |rank: usize| {
        let ranks = report.hang.iter().flat_map(|hang| &hang.ranks);
        ranks.into_iter().find(|hung| hung.rank == rank)
    };
    let pid = rank.and_then(|rank| match (&report.hang, &report.silent) {
        (Some(_), _) => of_hang(rank).map(|hung| hung.pid),
        (None, Some(silent)) => Some(silent.pid),
        (None, None) => Some(report.pid),
    });
    let part = guilty_part(report, parts);
    FailureRecord {
        rank,
        pid,
        device: rank.and_then(|rank| match of_hang(rank) {
            Some(hung) => hung.device.clone(),
            None => report.device.clone().filter(|_| rank == report.rank),
        }),
        node: part.map(|part| part.node),
        host: part.map(|part| part.host.clone()),
        class: report.class(),
        place: report.place(),
        code: report.exit_code,
        verdict: report.render(),
    }
}
