//! What workers print is in the files, whole and in order; what they say reaches the observer.

use std::cell::Cell;
use std::io;
use std::path::Path;

use cordee_launch::{Observer, Outcome, StopRequests, Stream};
use cordee_protocol::WorkerMessage;

use crate::Test;
use crate::stage::{Stage, failed, is_running, read_pid, wait_until};

pub(crate) const TESTS: &[Test] = &[
    (
        "output::fifty_megabytes_lose_nothing",
        fifty_megabytes_lose_nothing,
    ),
    ("output::messages_arrive_in_order", messages_arrive_in_order),
    (
        "output::garbage_on_the_message_pipe_is_logged",
        garbage_on_the_message_pipe_is_logged,
    ),
    (
        "output::a_closed_message_pipe_is_no_failure",
        a_closed_message_pipe_is_no_failure,
    ),
    (
        "output::bytes_stay_raw_in_the_file",
        bytes_stay_raw_in_the_file,
    ),
    ("output::a_second_attempt_appends", a_second_attempt_appends),
    (
        "output::a_full_disk_is_told_and_stops_nothing",
        a_full_disk_is_told_and_stops_nothing,
    ),
    (
        "output::an_observer_that_blocks_delays_no_kill",
        an_observer_that_blocks_delays_no_kill,
    ),
];

fn fifty_megabytes_lose_nothing() {
    let lines = 125_000;
    let stage = Stage::new(4, &["flood", &lines.to_string()]);
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    let mut bytes = 0;
    for rank in 0..4 {
        let log = String::from_utf8(stage.log(rank)).unwrap();
        let (mut numbered, mut blocks) = (0, 0);
        for line in log.lines() {
            if let Some(number) = line.strip_prefix("block ") {
                assert_eq!(number, blocks.to_string());
                blocks += 1;
            } else {
                assert_eq!(line, format!("{numbered:08} {}", "x".repeat(90)));
                numbered += 1;
            }
        }
        assert_eq!((numbered, blocks), (lines, lines / 100));
        bytes += log.len();
    }
    assert!(bytes >= 50_000_000, "{bytes}");
    assert_eq!(
        recorder.lines.len() as u64 + recorder.skipped,
        4 * (lines + lines / 100)
    );
}

fn messages_arrive_in_order() {
    let stage = Stage::new(2, &["steps", "3000"]);
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    for rank in 0..2 {
        let of_rank = recorder.messages.iter().filter(|(of, _)| *of == rank);
        let steps = of_rank.map(|(_, message)| match message {
            WorkerMessage::Step(progress) => progress.step,
            other => panic!("{other:?}"),
        });
        assert!(steps.eq(1..=3000));
        assert_eq!(stage.log(rank), b"");
    }
}

fn garbage_on_the_message_pipe_is_logged() {
    let part = "say:not json+say:{\"kind\":\"telepathy\"}+say:{\"kind\":\"warning\",\"rank\":0,\"text\":\"mind\"}+say-part:{\"kind\"+exit:1";
    let stage = Stage::new(1, &["by-rank", part]);
    let (outcome, recorder) = stage.run();
    let odd = ["not json", "{\"kind\":\"telepathy\"}", "{\"kind\""];
    assert_eq!(failed(outcome).last_lines, odd);
    assert_eq!(recorder.lines_of(0, Stream::Message), odd);
    assert_eq!(
        recorder.messages,
        [(
            0,
            WorkerMessage::Warning {
                rank: 0,
                text: "mind".to_owned()
            }
        )]
    );
    assert_eq!(stage.log(0), format!("{}\n", odd.join("\n")).into_bytes());
}

fn a_closed_message_pipe_is_no_failure() {
    let script = "exec 1>&1; eval \"exec $CORDEE_MESSAGE_FD>&-\"; sleep 0.1; echo still here; exec >&- 2>&-; sleep 0.1";
    let stage = Stage::script(2, "bash", script);
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert_eq!(recorder.lines_of(1, Stream::Stdout), ["still here"]);
}

fn bytes_stay_raw_in_the_file() {
    let stage = Stage::script(
        1,
        "sh",
        r"printf 'a\377b\n\000\n'; printf '%0150000d' 0; printf 'tail'",
    );
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert_eq!(recorder.lines[0].2, "a\u{fffd}b");
    let mut log = stage.log(0);
    assert!(log.starts_with(b"a\xffb\n\0\n000"));
    assert!(
        log.split(|&byte| byte == b'\n')
            .all(|line| line.len() <= 128 << 10)
    );
    log.retain(|&byte| byte == b'0');
    assert_eq!(log.len(), 150_000);
    assert!(recorder.lines.last().unwrap().2.ends_with("tail"));
}

fn a_second_attempt_appends() {
    let mut stage = Stage::new(1, &["by-rank", "print:first+print-part:cut"]);
    stage.run();
    stage.launch.attempt = 2;
    stage.run();
    assert_eq!(
        stage.log(0),
        b"first\ncut\n==== attempt 2 ====\nfirst\ncut\n"
    );
}

fn a_full_disk_is_told_and_stops_nothing() {
    let stage = Stage::new(1, &["by-rank", "print:one+sleep:50+print:two"]);
    std::fs::create_dir(&stage.launch.log_dir).unwrap();
    let log = stage.launch.log_dir.join("rank-000.log");
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert_eq!(
        recorder.log_failures,
        [(0, log, io::ErrorKind::StorageFull)]
    );
    assert_eq!(recorder.lines_of(0, Stream::Stdout), ["one", "two"]);
}

/// Does not come back from its first line before rank 1 is gone.
struct Blocking<'a> {
    directory: &'a Path,
    blocked: Cell<bool>,
}

impl Observer for Blocking<'_> {
    fn message(&mut self, _: usize, _: WorkerMessage) {}

    fn line(&mut self, _: usize, _: Stream, _: &str) {
        let pid = read_pid(&self.directory.join("ready-1"));
        wait_until("rank 1 is killed behind a blocked observer", || {
            !is_running(pid)
        });
        self.blocked.set(true);
    }

    fn lines_skipped(&mut self, _: usize, _: u64) {}

    fn log_failed(&mut self, _: usize, _: &Path, _: &io::Error) {}
}

fn an_observer_that_blocks_delays_no_kill() {
    let stage = Stage::new(2, &["by-rank", "print:hello+sleep:100+exit:1", "hang"]);
    let mut observer = Blocking {
        directory: stage.directory.path(),
        blocked: Cell::new(false),
    };
    let report = failed(stage.run_with(&mut observer, &StopRequests::new().unwrap()));
    assert_eq!(report.rank, 0);
    assert!(observer.blocked.get());
}
