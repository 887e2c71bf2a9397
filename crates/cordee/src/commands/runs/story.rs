//! All about a run, put together from its records: what is shown, and what `--json` prints.

use std::path::Path;

use cordee_metrics::{
    AttemptEvent, AttemptRecord, EventKind, FailureRecord, Ledger, Outcome, SourceEvaluation,
};
use serde::Serialize;

use crate::run_record::{RunRecord, Standing};

/// A run from its first start until now.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Story {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) state: Standing,
    /// The config that it was started with, as it was typed.
    pub(super) config: Option<String>,
    /// Its last start, word by word.
    pub(super) command: Vec<String>,
    /// A line about the model.
    pub(super) model: Option<String>,
    pub(super) ranks: usize,
    pub(super) device: String,
    pub(super) host: String,
    pub(super) step: u64,
    pub(super) steps: Option<u64>,
    pub(super) loss: Option<f64>,
    /// When it began, in seconds since 1970.
    pub(super) started: Option<f64>,
    pub(super) starts: usize,
    pub(super) attempts: Vec<Attempt>,
    pub(super) evaluations: Vec<Evaluation>,
    pub(super) checkpoints: Vec<Checkpoint>,
    /// Of all attempts together.
    pub(super) ledger: Option<Ledger>,
    pub(super) effective: Option<f64>,
}

/// One attempt at a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Attempt {
    /// From 1.
    #[serde(rename = "attempt")]
    pub(super) number: usize,
    /// In seconds since 1970, as all times.
    pub(super) started: Option<f64>,
    pub(super) ended: Option<f64>,
    pub(super) first_step: Option<u64>,
    pub(super) last_step: Option<u64>,
    /// What it went on from.
    pub(super) checkpoint: Option<String>,
    /// What the machine did not allow, or what was found and done before the start.
    pub(super) remarks: Vec<String>,
    /// Absent as long as it has none.
    pub(super) outcome: Option<Outcome>,
    pub(super) failure: Option<FailureRecord>,
    pub(super) decision: Option<String>,
    pub(super) ledger: Option<Ledger>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Evaluation {
    pub(super) step: u64,
    pub(super) time: f64,
    pub(super) loss: f64,
    pub(super) seconds: f64,
    pub(super) sources: Vec<SourceEvaluation>,
}

/// A checkpoint that was written; retention may have removed it since.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Checkpoint {
    pub(super) step: u64,
    pub(super) path: String,
    /// Whether it is there.
    pub(super) exists: bool,
    pub(super) bytes: Option<u64>,
    pub(super) time: Option<f64>,
    pub(super) seconds: Option<f64>,
}

impl Story {
    pub(super) fn of(record: &RunRecord) -> Self {
        let (step, steps) = record.steps();
        let environment = record.environment.clone();
        let ledger = record.ledger();
        Self {
            name: record.name(),
            path: record.run.path().display().to_string(),
            state: record.standing(),
            config: config(&environment.command),
            command: environment.command,
            model: model(&record.config),
            ranks: environment.ranks,
            device: environment.device,
            host: environment.host,
            step,
            steps,
            loss: record.last_steps.last().map(|it| it.loss),
            started: record.began(),
            starts: record.starts(),
            attempts: attempts(&record.attempts),
            evaluations: evaluations(record),
            checkpoints: checkpoints(record),
            effective: ledger.map(|it| it.effective()).filter(|it| it.is_finite()),
            ledger,
        }
    }
}

/// The config among the words of a command.
fn config(command: &[String]) -> Option<String> {
    let after = command.iter().skip_while(|word| *word != "train").skip(1);
    let mut values =
        after.filter(|word| Path::new(word).extension().is_some_and(|it| it == "toml"));
    values.next().cloned()
}

/// The model of a config, in the words of the run's own first lines.
fn model(config: &toml::Table) -> Option<String> {
    let model = config.get("model")?.as_table()?;
    let number = |table: &toml::Table, key: &str| table.get(key)?.as_integer();
    let vocabulary = number(model, "vocab_size")
        .or_else(|| number(config.get("data")?.as_table()?, "vocab_size"));
    let kv_heads = number(model, "kv_heads");
    let kv_heads = kv_heads.map_or_else(String::new, |it| format!(" ({it} kv)"));
    let parts = [
        model
            .get("family")
            .and_then(|it| it.as_str())
            .map(str::to_owned),
        number(model, "dim").map(|it| format!("dim {it}")),
        number(model, "layers").map(|it| format!("{it} layers")),
        number(model, "heads").map(|it| format!("{it} heads{kv_heads}")),
        number(model, "ffn").map(|it| format!("ffn {it}")),
        vocabulary.map(|it| format!("vocabulary {it}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn attempts(records: &[AttemptRecord]) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    for record in records {
        if attempts.last().is_none_or(|it| it.number != record.attempt) {
            attempts.push(Attempt {
                number: record.attempt,
                ..Attempt::default()
            });
        }
        let attempt = attempts.last_mut().expect("one was pushed");
        match record.event.clone() {
            AttemptEvent::Started {
                step,
                checkpoint,
                remarks,
                ..
            } => {
                attempt.started = Some(record.time);
                attempt.first_step = Some(step);
                attempt.checkpoint = checkpoint;
                attempt.remarks = remarks;
            }
            AttemptEvent::Ended {
                outcome,
                step,
                failure,
                decision,
                ledger,
            } => {
                attempt.ended = Some(record.time);
                attempt.last_step = Some(step);
                attempt.outcome = Some(outcome);
                attempt.failure = failure;
                attempt.decision = decision;
                attempt.ledger = Some(ledger);
            }
        }
    }
    attempts
}

fn evaluations(record: &RunRecord) -> Vec<Evaluation> {
    let evaluation = |event: &cordee_metrics::Event| match &event.event {
        EventKind::Evaluation {
            loss,
            seconds,
            sources,
        } => Some(Evaluation {
            step: event.step,
            time: event.time,
            loss: *loss,
            seconds: *seconds,
            sources: sources.clone(),
        }),
        _ => None,
    };
    record.events.iter().filter_map(evaluation).collect()
}

/// Those that events tell of and those that are there, by step.
fn checkpoints(record: &RunRecord) -> Vec<Checkpoint> {
    let saved = |event: &cordee_metrics::Event| match &event.event {
        EventKind::CheckpointSaved {
            path,
            bytes,
            seconds,
        } => Some(Checkpoint {
            step: event.step,
            path: path.clone(),
            exists: false,
            bytes: Some(*bytes),
            time: Some(event.time),
            seconds: Some(*seconds),
        }),
        _ => None,
    };
    let mut checkpoints: Vec<_> = record.events.iter().filter_map(saved).collect();
    for (step, path) in &record.checkpoints {
        let path = path.display().to_string();
        match checkpoints.iter_mut().rev().find(|it| it.step == *step) {
            Some(told) => (told.exists, told.path) = (true, path),
            None => checkpoints.push(Checkpoint {
                step: *step,
                path,
                exists: true,
                bytes: None,
                time: None,
                seconds: None,
            }),
        }
    }
    checkpoints.sort_by_key(|it| it.step);
    checkpoints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_record::samples;

    #[test]
    fn a_story_is_put_together_from_all_records() {
        let folder = tempfile::tempdir().unwrap();
        let run = samples::write(folder.path(), "run");
        fs_err::create_dir(run.checkpoints().join("step-000000200")).unwrap();
        let story = Story::of(&RunRecord::read(run));
        assert_eq!(story.config.as_deref(), Some("configs/quickstart.toml"));
        let model = "llama, dim 192, 4 layers, 6 heads (2 kv), ffn 512, vocabulary 2048";
        assert_eq!(story.model.as_deref(), Some(model));
        let first = &story.attempts[0];
        assert_eq!((first.first_step, first.last_step), (Some(0), Some(142)));
        assert_eq!(first.decision.as_deref(), Some("restart"));
        assert_eq!(story.attempts[1].outcome, None);
        assert_eq!(story.evaluations[0].sources.len(), 2);
        let known: Vec<_> = story
            .checkpoints
            .iter()
            .map(|it| (it.step, it.bytes))
            .collect();
        assert_eq!(known, [(100, Some(23_630_080)), (200, None)]);
        assert!(story.checkpoints.iter().all(|it| it.exists));
    }

    #[test]
    fn an_empty_config_has_no_model_line() {
        assert_eq!(model(&toml::Table::new()), None);
        assert_eq!(config(&["cordee".to_owned()]), None);
    }
}
