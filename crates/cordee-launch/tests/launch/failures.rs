//! The rank that fell first is named, with what it said; the others are gone soon.

use std::time::{Duration, Instant};

use cordee_launch::{Ending, Fate, LaunchError, Stream};

use crate::Test;
use crate::stage::{Stage, failed, is_running};

pub(crate) const TESTS: &[Test] = &[
    (
        "failures::an_exit_code_is_named_and_passed_on",
        an_exit_code_is_named_and_passed_on,
    ),
    ("failures::a_signal_is_named", a_signal_is_named),
    (
        "failures::the_first_of_several_is_named",
        the_first_of_several_is_named,
    ),
    (
        "failures::a_victim_is_not_the_cause",
        a_victim_is_not_the_cause,
    ),
    (
        "failures::a_victim_alone_is_named_within_seconds",
        a_victim_alone_is_named_within_seconds,
    ),
    (
        "failures::exits_while_being_killed_are_no_causes",
        exits_while_being_killed_are_no_causes,
    ),
    (
        "failures::a_missing_program_is_named",
        a_missing_program_is_named,
    ),
    (
        "failures::a_log_that_cannot_be_opened_is_named",
        a_log_that_cannot_be_opened_is_named,
    ),
];

fn an_exit_code_is_named_and_passed_on() {
    let failing = "steps:7+print:starting+complain:loss is NaN+say:{\"kind\":\"failed\",\"rank\":1,\"code\":4,\
        \"message\":\"diverged at step 7\",\"hint\":\"lower lr\"}+exit:4";
    let stage = Stage::new(3, &["by-rank", "hang", failing, "hang"]);
    let start = Instant::now();
    let (outcome, recorder) = stage.run();
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(outcome.exit_code(), 4);
    let report = failed(outcome);
    assert_eq!((report.rank, report.pid), (1, recorder.pids[1]));
    assert_eq!(report.ending, Ending::Exited(4));
    assert_eq!(
        report.failure.as_ref().unwrap().hint.as_deref(),
        Some("lower lr")
    );
    let mut lines = report.last_lines.clone();
    lines.sort();
    assert_eq!(lines, ["loss is NaN", "starting"]);
    assert!(report.log.ends_with("logs/rank-001.log"));
    let others: Vec<_> = report
        .others
        .iter()
        .map(|other| (other.rank, other.fate))
        .collect();
    assert_eq!(
        others,
        [(0, Fate::StoppedByLauncher), (2, Fate::StoppedByLauncher)]
    );
    assert_eq!(report.last_step, Some(7));
    let text = report.render();
    assert!(
        text.contains("exited with code 4 (diverged)")
            && text.contains("cause: diverged at step 7"),
        "{text}"
    );
    assert_eq!(recorder.messages.len(), 8);
    assert_eq!(recorder.lines_of(1, Stream::Stderr), ["loss is NaN"]);
    assert_eq!(recorder.ended[0], (1, Ending::Exited(4), false));
    assert!(
        recorder.ended[1..]
            .iter()
            .all(|(_, ending, by_launcher)| *by_launcher && ending.is_signal(9))
    );
    assert!(recorder.pids.iter().all(|&pid| !is_running(pid)));
}

fn a_signal_is_named() {
    for (number, words) in [
        ("9", "was killed by SIGKILL (signal 9)"),
        ("11", "was killed by SIGSEGV (signal 11)"),
    ] {
        let part = format!("print-part:half a line+kill-self:{number}");
        let (outcome, _) = Stage::new(2, &["by-rank", &part, "hang"]).run();
        assert_eq!(outcome.exit_code(), 1);
        let report = failed(outcome);
        assert_eq!(report.rank, 0);
        assert_eq!(report.last_lines, ["half a line"]);
        assert!(report.render().contains(words), "{}", report.render());
    }
}

fn the_first_of_several_is_named() {
    let stage = Stage::new(
        4,
        &[
            "by-rank",
            "hang",
            "after:2+exit:1",
            "await:1+await:3+exit:57",
            "after:2+kill-self:10",
        ],
    );
    let report = failed(stage.run().0);
    assert_eq!(
        (report.rank, report.ending, report.exit_code),
        (2, Ending::Exited(57), 1)
    );
    let fates: Vec<_> = report.others.iter().map(|other| other.fate).collect();
    assert_eq!(
        fates[..2],
        [Fate::StoppedByLauncher, Fate::Ended(Ending::Exited(1))]
    );
    assert!(
        matches!(fates[2], Fate::Ended(ending) if ending.is_signal(10)),
        "{fates:?}"
    );
}

fn a_victim_is_not_the_cause() {
    // The peer's end is seen long after the victim's, as when a driver is slow to let it go.
    let stage = Stage::new(
        3,
        &[
            "by-rank",
            "blame:1+exit:1",
            "sleep:500+kill-self:11",
            "hang",
        ],
    );
    let report = failed(stage.run().0);
    assert_eq!(report.rank, 1, "{}", report.render());
    assert_eq!(report.others[0].fate, Fate::Ended(Ending::Exited(1)));
}

fn a_victim_alone_is_named_within_seconds() {
    let start = Instant::now();
    let report = failed(
        Stage::new(2, &["by-rank", "hang", "blame:0+exit:95"])
            .run()
            .0,
    );
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    assert_eq!((report.rank, report.exit_code), (1, 95));
    assert_eq!(report.failure.unwrap().message, "rank 0 fell");
}

fn exits_while_being_killed_are_no_causes() {
    // Ten runs in which the others fail close to the moment of the kill.
    for delay in (191..211).step_by(2) {
        let late = format!("after:1+sleep:{delay}+exit:3");
        let report = failed(Stage::new(3, &["by-rank", &late, "exit:2", &late]).run().0);
        assert_eq!((report.rank, report.exit_code), (1, 2));
    }
}

fn a_missing_program_is_named() {
    let mut stage = Stage::new(2, &[]);
    stage.launch.program = "/no/such/worker".into();
    let error = stage.refused();
    assert!(
        matches!(&error, LaunchError::Spawn { rank: 0, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("/no/such/worker"), "{error}");
    stage.launch.ranks = 0;
    assert!(matches!(stage.refused(), LaunchError::NoRanks));
}

fn a_log_that_cannot_be_opened_is_named() {
    let stage = Stage::new(3, &["by-rank", "hang", "hang", "hang"]);
    // Rank 1 cannot have its log: rank 0 runs by then and must go.
    std::fs::create_dir_all(stage.launch.log_dir.join("rank-001.log")).unwrap();
    let error = stage.refused();
    assert!(error.to_string().contains("rank-001.log"), "{error}");
}
