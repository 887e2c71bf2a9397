//! What is told of runs in every state.

use cordee_metrics::{Outcome, RunState};

use super::{samples::*, *};

#[test]
fn what_a_run_wrote_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let record = record(folder.path());
    assert_eq!(record.name(), "my run");
    assert_eq!(record.steps(), (142, Some(320)));
    assert_eq!(record.began(), Some(BEGAN));
    assert_eq!(record.starts(), 2);
    assert_eq!(record.last_steps.len(), LAST_STEPS);
    assert_eq!(record.throughput(), Some(16384.0));
    assert_eq!(record.checkpoints[0].0, 100);
    let ledger = record.ledger().unwrap();
    assert_eq!((ledger.training_s, ledger.start_s), (51.5, 1.75));
    assert!((record.status_age().unwrap() - 0.4).abs() < 1e-6);
}

#[test]
fn half_lines_and_missing_files_leave_out_what_they_would_have_told() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "torn");
    let tear = |name: &str, keep: usize| {
        let path = run.path().join(name);
        let text = fs_err::read(&path).unwrap();
        let (kept, _) = text.split_at(text.len() - keep);
        fs_err::write(&path, [kept, b"\n{\"step\":"].concat()).unwrap();
    };
    tear("metrics.jsonl", 20);
    tear("events.jsonl", 20);
    tear("attempts.jsonl", 20);
    let record = RunRecord::read(run.clone());
    assert_eq!(record.steps(), (141, Some(320)));
    assert_eq!(record.attempts.len(), 2);
    for name in [
        "metrics.jsonl",
        "events.jsonl",
        "attempts.jsonl",
        "status.json",
    ] {
        fs_err::remove_file(run.path().join(name)).unwrap();
    }
    fs_err::write(run.config(), "[train").unwrap();
    fs_err::write(run.path().join("env.json"), "{").unwrap();
    let record = RunRecord::read(run);
    assert_eq!(record.steps(), (0, None));
    assert_eq!((record.began(), record.starts()), (None, 0));
    assert!(record.ledger().is_none() && record.throughput().is_none());
    assert_eq!(record.standing(), Standing::Lost);
}

#[test]
fn how_a_run_stands_follows_from_its_launcher_and_its_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = record(folder.path());
    let mut standing = |launcher, state, outcome, age| {
        record.launcher = launcher;
        record.status = Some(status(state));
        record.attempts = attempts(outcome);
        record.now = BEGAN + 60.0 + age;
        record.standing()
    };
    let (running, ended) = (RunState::Running, RunState::Ended);
    let cases = [
        (Launcher::Alive, running, None, 0.5, Standing::Running),
        (
            Launcher::Alive,
            RunState::Stopping,
            None,
            0.5,
            Standing::Stopping,
        ),
        (
            Launcher::Alive,
            RunState::Restarting,
            None,
            0.5,
            Standing::Restarting,
        ),
        // The launcher is about to end; a moment ago it said how.
        (
            Launcher::Alive,
            ended,
            Some(Outcome::Done),
            0.5,
            Standing::Done,
        ),
        (Launcher::Alive, running, None, 600.0, Standing::Running),
        (Launcher::Gone, running, None, 0.5, Standing::Lost),
        (
            Launcher::Gone,
            ended,
            Some(Outcome::Stopped),
            0.5,
            Standing::Stopped,
        ),
        (
            Launcher::Gone,
            ended,
            Some(Outcome::Failed),
            9e9,
            Standing::Failed,
        ),
        (Launcher::Unknown, running, None, 5.0, Standing::Running),
        (Launcher::Unknown, running, None, 60.0, Standing::Lost),
        (
            Launcher::Unknown,
            ended,
            Some(Outcome::Interrupted),
            5.0,
            Standing::Interrupted,
        ),
    ];
    for (launcher, state, outcome, age, expected) in cases {
        let found = standing(launcher, state, outcome, age);
        assert_eq!(
            found, expected,
            "{launcher:?}, {state:?}, {outcome:?}, {age} s"
        );
    }
}

#[test]
fn a_start_after_the_end_is_a_run_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = record(folder.path());
    record.launcher = Launcher::Alive;
    record.status = Some(status(RunState::Ended));
    record.attempts = attempts(Some(Outcome::Stopped));
    record.environment.attempt = 3;
    assert_eq!(record.standing(), Standing::Running);
}

#[test]
fn a_run_that_kept_no_attempts_is_judged_by_its_events() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = record(folder.path());
    record.attempts.clear();
    record.status = None;
    record.launcher = Launcher::Gone;
    assert_eq!(record.standing(), Standing::Lost);
    record.events.pop();
    assert_eq!(record.standing(), Standing::Failed);
    assert_eq!(record.starts(), 2);
}
