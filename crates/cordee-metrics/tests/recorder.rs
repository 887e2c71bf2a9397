//! What a run directory holds after a run, after a resume, and compared with its twin.

#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

mod records;

use std::fs;
use std::path::Path;

use cordee_metrics::{
    EVENTS_FILE, Event, EventKind, METRICS_FILE, MetricsError, Recorder, StepRecord, TIMING_FIELDS,
    append_event, read_events, read_steps, unix_time,
};
use proptest::prelude::*;
use records::step;

/// Trains from `resume_at` to `last`, as far as the records are concerned.
fn run(folder: &Path, resume_at: Option<u64>, last: u64) {
    let recorder = Recorder::open(folder, resume_at, false).unwrap();
    let done = resume_at.unwrap_or(0);
    recorder.event(Event::now(
        done,
        EventKind::RunStarted { ranks: 2, steps: 9 },
    ));
    for index in done + 1..=last {
        recorder.step(StepRecord {
            time: unix_time(),
            ..step(index)
        });
        recorder.event(Event::now(
            index,
            EventKind::Warning {
                rank: 0,
                text: index.to_string(),
            },
        ));
    }
    assert_eq!(recorder.finish().unwrap(), 0);
}

fn steps(folder: &Path) -> Vec<u64> {
    read_steps(&folder.join(METRICS_FILE))
        .unwrap()
        .iter()
        .map(|record| record.step)
        .collect()
}

fn event_steps(folder: &Path) -> Vec<u64> {
    read_events(&folder.join(EVENTS_FILE))
        .unwrap()
        .iter()
        .map(|event| event.step)
        .collect()
}

/// The lines of `metrics.jsonl` without what differs between equal runs.
fn without_timing(folder: &Path) -> Vec<serde_json::Map<String, serde_json::Value>> {
    let text = fs::read_to_string(folder.join(METRICS_FILE)).unwrap();
    let lines = text.lines().map(|line| {
        let mut object: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
        object.retain(|key, _| !TIMING_FIELDS.contains(&key.as_str()));
        object
    });
    lines.collect()
}

#[test]
fn a_resume_cuts_what_lies_past_its_checkpoint_and_what_a_crash_left_half_written() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 5);
    for name in [METRICS_FILE, EVENTS_FILE] {
        let path = folder.path().join(name);
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(br#"{"step":6,"time":17"#);
        fs::write(&path, text).unwrap();
    }
    // The reader does not stumble over the half line either.
    assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5]);
    run(folder.path(), Some(3), 6);
    assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5, 6]);
    assert_eq!(event_steps(folder.path()), [0, 1, 2, 3, 3, 4, 5, 6]);
}

#[test]
fn a_run_that_starts_anew_keeps_nothing_of_an_earlier_attempt() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 4);
    run(folder.path(), None, 2);
    assert_eq!(steps(folder.path()), [1, 2]);
    assert_eq!(event_steps(folder.path()), [0, 1, 2]);
}

#[test]
fn equal_runs_write_equal_steps_even_if_one_was_interrupted() {
    let (twin, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(twin.path(), None, 9);
    run(other.path(), None, 7);
    run(other.path(), Some(4), 9);
    assert_eq!(without_timing(twin.path()), without_timing(other.path()));
    // The comparison must be able to fail: the times do differ.
    let [left, right] = [&twin, &other].map(|folder| fs::read(folder.path().join(METRICS_FILE)));
    assert_ne!(left.unwrap(), right.unwrap());
}

#[test]
fn a_flush_returns_when_the_lines_are_in_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(folder.path(), None, false).unwrap();
    for index in 1..=200 {
        recorder.step(step(index));
    }
    recorder.flush().unwrap();
    assert_eq!(steps(folder.path()).len(), 200);
}

#[test]
fn a_recorder_that_is_dropped_still_writes() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(folder.path(), None, false).unwrap();
    for index in 1..=200 {
        recorder.step(step(index));
    }
    drop(recorder);
    assert_eq!(steps(folder.path()).len(), 200);
}

#[test]
fn a_line_that_is_no_record_is_named_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 2);
    let path = folder.path().join(METRICS_FILE);
    let text = fs::read_to_string(&path).unwrap() + "{}\n";
    fs::write(&path, text).unwrap();
    match read_steps(&path).unwrap_err() {
        MetricsError::Malformed { line, .. } => assert_eq!(line, 3),
        other => panic!("{other}"),
    }
}

proptest! {
    #[test]
    fn every_number_reads_back_bit_exact(bits in prop::collection::vec(any::<u64>(), 7)) {
        let numbers: Vec<f64> = bits.into_iter().map(f64::from_bits).collect();
        let record = StepRecord {
            loss: numbers[0],
            grad_norm: numbers[1],
            lr: numbers[2],
            epoch: numbers[3],
            time: numbers[4],
            step_s: numbers[5],
            tokens_per_s: numbers[6],
            ..step(1)
        };
        let line = serde_json::to_string(&record).unwrap();
        let again: StepRecord = serde_json::from_str(&line).unwrap();
        let bits = |record: &StepRecord| {
            let StepRecord { loss, grad_norm, lr, epoch, time, step_s, tokens_per_s, .. } = *record;
            [loss, grad_norm, lr, epoch, time, step_s, tokens_per_s].map(|number| {
                // JSON has only one thing for what is not a number.
                if number.is_finite() { number.to_bits() } else { f64::NAN.to_bits() }
            })
        };
        prop_assert_eq!(bits(&record), bits(&again));
    }
}

#[test]
fn an_event_is_added_behind_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 3);
    let path = folder.path().join(EVENTS_FILE);
    let before = read_events(&path).unwrap().len();
    let mut text = fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"step\":3,\"ti");
    fs::write(&path, text).unwrap();
    let reason = "killed".to_owned();
    append_event(
        folder.path(),
        &Event::now(3, EventKind::Failed { rank: 1, reason }),
    )
    .unwrap();
    let events = read_events(&path).unwrap();
    assert!(matches!(
        events.last().unwrap().event,
        EventKind::Failed { rank: 1, .. }
    ));
    assert_eq!(events.len(), before + 1);
}
