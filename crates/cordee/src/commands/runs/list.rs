//! Runs beneath each other.

use jiff::tz::TimeZone;
use serde::Serialize;

use super::date;
use crate::{
    console::{Side, harmless, share, table},
    run_record::{RunRecord, Standing},
};

/// What a list says of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    name: String,
    state: Standing,
    /// Optimizer steps done.
    step: u64,
    /// Those that the run is to have.
    steps: Option<u64>,
    /// Of the last step.
    loss: Option<f64>,
    /// When it began, in seconds since 1970.
    started: Option<f64>,
    attempts: usize,
    /// The share of its time that trained or validated.
    effective: Option<f64>,
    #[serde(skip)]
    share: String,
}

impl Row {
    pub(super) fn of(record: &RunRecord) -> Self {
        let (step, steps) = record.steps();
        let ledger = record.ledger();
        let effective = ledger.map(|it| it.effective()).filter(|it| it.is_finite());
        Self {
            name: record.name(),
            state: record.standing(),
            step,
            steps,
            loss: record.last_steps.last().map(|it| it.loss),
            started: record.began(),
            attempts: record.starts(),
            effective,
            share: ledger.as_ref().map_or_else(nothing, share),
        }
    }
}

fn nothing() -> String {
    "--".to_owned()
}

/// The table, in the order of the rows.
pub(super) fn page(rows: &[Row], zone: &TimeZone) -> String {
    let heads = [
        ("name", Side::Left),
        ("state", Side::Left),
        ("step", Side::Right),
        ("loss", Side::Right),
        ("started", Side::Left),
        ("attempts", Side::Right),
        ("goodput", Side::Right),
    ];
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let step = match row.steps {
                Some(steps) => format!("{}/{steps}", row.step),
                None => row.step.to_string(),
            };
            [
                harmless(&row.name),
                row.state.to_string(),
                step,
                row.loss.map_or_else(nothing, |loss| format!("{loss:.4}")),
                row.started.map_or_else(nothing, |time| date(time, zone)),
                row.attempts.to_string(),
                row.share.clone(),
            ]
        })
        .collect();
    table(heads, &cells, &[])
}

#[cfg(test)]
mod tests {
    use cordee_metrics::Outcome;
    use insta::assert_snapshot;

    use super::*;
    use crate::run_record::samples;

    #[test]
    fn a_run_takes_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let done = samples::write(folder.path(), "a-run-that-came-to-its-end");
        samples::write_attempts(&done, &samples::attempts(Some(Outcome::Done)));
        let bare = samples::write(folder.path(), "bare");
        for name in [
            "metrics.jsonl",
            "attempts.jsonl",
            "events.jsonl",
            "env.json",
            "status.json",
        ] {
            fs_err::write(bare.path().join(name), "").unwrap();
        }
        let rows = [done, bare].map(|run| Row::of(&RunRecord::read(run)));
        assert_snapshot!(page(&rows, &TimeZone::UTC), @"
        name                        state     step    loss  started              attempts  goodput
        a-run-that-came-to-its-end  done   142/320  5.5800  2026-09-21 14:13:20         2    90.3%
        bare                        lost     0/320      --  --                          0       --
        ");
        assert_snapshot!(serde_json::json!(rows), @r#"[{"attempts":2,"effective":0.9029649595687331,"loss":5.58,"name":"a-run-that-came-to-its-end","started":1790000000.0,"state":"done","step":142,"steps":320},{"attempts":0,"effective":null,"loss":null,"name":"bare","started":null,"state":"lost","step":0,"steps":320}]"#);
    }
}
