//! The reference page of the files, made from the records' own documentation.

use std::fmt::Write as _;

use crate::documented::Field;
use crate::{
    AttemptEvent, AttemptRecord, Event, EventKind, FailureRecord, Ledger, NodeStatus, RankStatus,
    RunStatus, SourceEvaluation, StepRecord, TIMING_FIELDS, prometheus,
};

/// A Markdown page that says what each field of the files of a run means.
pub fn reference() -> String {
    let mut page = String::from(INTRODUCTION);
    page.push_str("\n## `metrics.jsonl`\n\nOne line per optimizer step.\n\n");
    table(&mut page, StepRecord::FIELDS.iter());
    page.push_str(
        "\n## `events.jsonl`\n\nEverything that is not a step. Every line has these fields:\n\n",
    );
    table(&mut page, Event::FIELDS.iter());
    for variant in EventKind::VARIANTS {
        let text = variant.text.trim();
        let _ = write!(page, "\n### `{}`\n\n{text}\n\n", variant.name);
        table(&mut page, variant.fields.iter());
        if variant.name == "evaluation" {
            page.push_str("\nEach of `sources` has:\n\n");
            table(&mut page, SourceEvaluation::FIELDS.iter());
        }
    }
    attempts(&mut page);
    collected(&mut page);
    page
}

/// The files of the launcher.
fn attempts(page: &mut String) {
    page.push_str(
        "\n## `attempts.jsonl`\n\nWhat the launcher saw of every attempt at the run. Nothing is ever cut from it. \
         Every line has these fields:\n\n",
    );
    table(page, AttemptRecord::FIELDS.iter());
    for variant in AttemptEvent::VARIANTS {
        let _ = write!(
            page,
            "\n### `{}`\n\n{}\n\n",
            variant.name,
            variant.text.trim()
        );
        table(page, variant.fields.iter());
        if variant.name == "ended" {
            page.push_str("\nA `failure` has:\n\n");
            table(page, FailureRecord::FIELDS.iter());
            page.push_str("\nA `ledger` has these parts, which add up to the whole time:\n\n");
            table(page, Ledger::FIELDS.iter());
        }
    }
    page.push_str(
        "\n## `status.json`\n\nHow the run stands, one object, written anew every second while ranks run. \
         `cordee status` shows it.\n\n",
    );
    table(page, RunStatus::FIELDS.iter());
    page.push_str(
        "\n`state` is `running`, `stopping`, `restarting` or `ended`. Each of `ranks` has:\n\n",
    );
    table(page, RankStatus::FIELDS.iter());
    page.push_str("\nEach of `nodes` has:\n\n");
    table(page, NodeStatus::FIELDS.iter());
}

/// What is not in a file.
fn collected(page: &mut String) {
    page.push_str(
        "\n## What Prometheus collects\n\nWhere launchers serve a page over HTTP, its `/metrics` has these, in the \
         text format of Prometheus or as OpenMetrics, whichever is asked for. Names that end with `_total` are \
         counters, with `_info` labels alone; all others are gauges. What is not known is absent.\n\n\
         | metric | meaning |\n| --- | --- |\n",
    );
    for (name, text) in prometheus::rows() {
        let _ = writeln!(page, "| `{name}` | {text} |");
    }
}

const INTRODUCTION: &str = "\
# What a run records

A run directory has files of JSON lines: one object a line, in the order in which things
happened. Numbers are written so that they read back bit-exact. JSON has no NaN and no infinity: both
are `null`.

A line is written whole, as soon as it is known. What a full disk refuses is kept and written when
there is room. A run that resumes from a checkpoint first cuts the lines past that checkpoint from
both files, so that every step stands there once.

Two runs of the same config on the same number of ranks write the same `metrics.jsonl`, apart from
the fields marked with a clock (\u{23f1}): times, what is derived from them, and memory.
";

fn table<'a>(page: &mut String, fields: impl Iterator<Item = &'a Field>) {
    page.push_str("| field | meaning |\n| --- | --- |\n");
    for Field { name, text } in fields {
        let clock = if TIMING_FIELDS.contains(name) {
            " \u{23f1}"
        } else {
            ""
        };
        let _ = writeln!(page, "| `{name}`{clock} | {} |", text.trim());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::Serialize;

    use super::reference;
    use crate::documented::Field;
    use crate::{Event, EventKind, SourceEvaluation, StepRecord, TIMING_FIELDS};

    fn keys(record: &impl Serialize) -> Vec<String> {
        let line = serde_json::to_string(record).unwrap();
        // A map of serde_json would sort them; the page has them in the order of the file.
        let mut keys: Vec<_> = serde_json::from_str::<serde_json::Map<_, _>>(&line)
            .unwrap()
            .into_iter()
            .map(|(key, _)| (line.find(&format!("\"{key}\":")).unwrap(), key))
            .collect();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    fn names(fields: &[Field]) -> Vec<&str> {
        fields.iter().map(|field| field.name).collect()
    }

    fn step() -> StepRecord {
        let line = r#"{"step":1,"time":2.5,"loss":3.5,"grad_norm":1.0,"clipped":true,"lr":0.1,
            "tokens":8,"tokens_trained":7,"samples":2,"epoch":0.5,"step_s":0.1,"data_s":0.0,
            "comm_s":0.0,"comm_exposed_s":0.0,"tokens_per_s":80.0,"host_rss_bytes":9}"#;
        serde_json::from_str(line).unwrap()
    }

    /// One event of each kind.
    fn events() -> Vec<EventKind> {
        let text = || "text".to_owned();
        let source = SourceEvaluation {
            name: text(),
            loss: 1.0,
            bits_per_byte: Some(2.0),
            unigram_bits_per_byte: Some(3.0),
        };
        vec![
            EventKind::RunStarted {
                ranks: 2,
                steps: 10,
            },
            EventKind::Resumed {
                path: text(),
                ranks: 2,
                steps: 10,
            },
            EventKind::Evaluation {
                loss: f64::NAN,
                seconds: 0.5,
                sources: vec![source],
            },
            EventKind::CheckpointSaved {
                path: text(),
                bytes: 1,
                seconds: 0.25,
            },
            EventKind::CheckpointFailed { reason: text() },
            EventKind::Warning {
                rank: 1,
                text: text(),
            },
            EventKind::Sample {
                prompt: text(),
                text: text(),
            },
            EventKind::Stopped { checkpoint: None },
            EventKind::Finished {
                seconds: 9.0,
                tokens: 70,
            },
            EventKind::Failed {
                rank: 1,
                reason: text(),
            },
        ]
    }

    #[test]
    fn the_page_names_exactly_the_keys_of_the_files_in_their_order() {
        assert_eq!(keys(&step()), names(StepRecord::FIELDS));
        let kinds = events();
        assert_eq!(kinds.len(), EventKind::VARIANTS.len());
        for (event, variant) in kinds.into_iter().zip(EventKind::VARIANTS) {
            let line = Event {
                step: 3,
                time: 1.5,
                event,
            };
            let value = serde_json::to_value(&line).unwrap();
            assert_eq!(value["event"], variant.name);
            let expected = [names(Event::FIELDS), names(variant.fields)].concat();
            assert_eq!(keys(&line), expected);
            if let Some(sources) = value.get("sources") {
                let source: SourceEvaluation = serde_json::from_value(sources[0].clone()).unwrap();
                assert_eq!(keys(&source), names(SourceEvaluation::FIELDS));
            }
            // What was written reads back, NaN included.
            let again: Event = serde_json::from_value(value).unwrap();
            assert_eq!(format!("{again:?}"), format!("{line:?}"));
        }
    }

    #[test]
    fn timing_fields_are_fields() {
        let variants = EventKind::VARIANTS
            .iter()
            .flat_map(|variant| variant.fields);
        let known: BTreeSet<_> = StepRecord::FIELDS
            .iter()
            .chain(variants)
            .map(|field| field.name)
            .collect();
        for name in TIMING_FIELDS {
            assert!(known.contains(name), "{name}");
        }
    }

    #[test]
    fn the_page_has_no_broken_table_row() {
        let page = reference();
        for row in page.lines().filter(|line| line.starts_with('|')) {
            assert_eq!(row.matches('|').count(), 3, "{row}");
        }
        assert!(page.contains("| `loss` | Mean loss per trained token over all ranks, in nats. |"));
        assert!(page.contains("| `time` \u{23f1} |"));
    }
}
