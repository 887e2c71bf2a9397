//! Stops on request: once for a checkpoint, twice for at once.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cordee_launch::{Ending, Observer, Outcome, StopRequests, Stream};
use cordee_protocol::WorkerMessage;

use crate::Test;
use crate::stage::{Recorder, Stage, failed, read_pid};

pub(crate) const TESTS: &[Test] = &[
    (
        "stopping::one_request_lets_the_workers_finish",
        one_request_lets_the_workers_finish,
    ),
    ("stopping::a_second_request_kills", a_second_request_kills),
    (
        "stopping::grace_that_runs_out_kills",
        grace_that_runs_out_kills,
    ),
    (
        "stopping::a_failure_while_stopping_is_a_failure",
        a_failure_while_stopping_is_a_failure,
    ),
    (
        "stopping::a_worker_without_a_handler_leaves_no_checkpoint",
        a_worker_without_a_handler_leaves_no_checkpoint,
    ),
    (
        "stopping::a_stop_before_the_start_starts_nothing",
        a_stop_before_the_start_starts_nothing,
    ),
    (
        "stopping::exit_codes_without_a_request",
        exit_codes_without_a_request,
    ),
];

/// Asks to stop once all workers handle the signal, and again when a line comes.
struct Stopper {
    stop: StopRequests,
    directory: PathBuf,
    world_size: usize,
    inner: Recorder,
}

impl Observer for Stopper {
    fn started(&mut self, rank: usize, pid: u32) {
        self.inner.started(rank, pid);
        if rank + 1 == self.world_size {
            for rank in 0..self.world_size {
                read_pid(&self.directory.join(format!("ready-{rank}")));
            }
            self.stop.request();
        }
    }

    fn message(&mut self, _: usize, _: WorkerMessage) {}

    fn line(&mut self, rank: usize, stream: Stream, line: &str) {
        self.inner.line(rank, stream, line);
        self.stop.request();
    }

    fn lines_skipped(&mut self, _: usize, _: u64) {}

    fn log_failed(&mut self, _: usize, _: &Path, _: &io::Error) {}

    fn ended(&mut self, rank: usize, ending: Ending, by_launcher: bool) {
        self.inner.ended(rank, ending, by_launcher);
    }
}

fn stop(stage: &Stage) -> (Outcome, Recorder) {
    let stop = StopRequests::new().unwrap();
    let mut stopper = Stopper {
        stop: stop.clone(),
        directory: stage.directory.path().to_owned(),
        world_size: stage.launch.ranks,
        inner: Recorder::default(),
    };
    let outcome = stage.run_with(&mut stopper, &stop);
    (outcome, stopper.inner)
}

fn one_request_lets_the_workers_finish() {
    let stage = Stage::new(
        2,
        &[
            "by-rank",
            "wait-for-term+sleep:300+exit:75",
            "wait-for-term+sleep:600+exit:75",
        ],
    );
    let (outcome, recorder) = stop(&stage);
    assert!(matches!(outcome, Outcome::Stopped), "{outcome:?}");
    assert_eq!(outcome.exit_code(), 75);
    assert_eq!(
        recorder.ended,
        [
            (0, Ending::Exited(75), false),
            (1, Ending::Exited(75), false)
        ]
    );
    let mut stage = Stage::new(
        2,
        &["by-rank", "wait-for-term+exit:0", "wait-for-term+exit:75"],
    );
    stage.launch.grace = Some(Duration::from_secs(20));
    let (outcome, _) = stop(&stage);
    assert!(matches!(outcome, Outcome::Stopped), "mixed: {outcome:?}");
}

fn a_second_request_kills() {
    let stage = Stage::new(
        2,
        &[
            "by-rank",
            "wait-for-term+print:not yet+hang",
            "wait-for-term+hang",
        ],
    );
    let start = Instant::now();
    let (outcome, recorder) = stop(&stage);
    assert!(matches!(outcome, Outcome::Interrupted), "{outcome:?}");
    assert_eq!(outcome.exit_code(), 130);
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    assert!(
        recorder
            .ended
            .iter()
            .all(|(_, _, by_launcher)| *by_launcher),
        "{:?}",
        recorder.ended
    );
}

fn grace_that_runs_out_kills() {
    let mut stage = Stage::new(2, &["by-rank", "hang+hang", "wait-for-term+exit:75"]);
    stage.launch.grace = Some(Duration::from_millis(300));
    let start = Instant::now();
    let (outcome, recorder) = stop(&stage);
    assert!(matches!(outcome, Outcome::Interrupted), "{outcome:?}");
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert_eq!(recorder.ended[0], (1, Ending::Exited(75), false));
}

fn a_failure_while_stopping_is_a_failure() {
    let stage = Stage::new(
        2,
        &["by-rank", "wait-for-term+hang", "wait-for-term+exit:3"],
    );
    let report = failed(stop(&stage).0);
    assert_eq!((report.rank, report.exit_code), (1, 3));
}

fn a_worker_without_a_handler_leaves_no_checkpoint() {
    let script = "echo $$ > $TEST_DIRECTORY/ready-$RANK; exec sleep 60";
    let (outcome, recorder) = stop(&Stage::script(2, "sh", script));
    assert!(matches!(outcome, Outcome::Interrupted), "{outcome:?}");
    assert!(
        recorder
            .ended
            .iter()
            .all(|(_, ending, _)| ending.is_signal(15)),
        "{:?}",
        recorder.ended
    );
}

fn a_stop_before_the_start_starts_nothing() {
    let stop = StopRequests::new().unwrap();
    stop.request();
    let mut recorder = Recorder::default();
    let outcome = Stage::new(2, &["exit", "0", "0"]).run_with(&mut recorder, &stop);
    assert!(matches!(outcome, Outcome::Interrupted), "{outcome:?}");
    assert!(recorder.pids.is_empty());
}

fn exit_codes_without_a_request() {
    let outcome = |codes: [&str; 2]| Stage::new(2, &["exit", codes[0], codes[1]]).run().0;
    assert!(matches!(outcome(["0", "0"]), Outcome::Done));
    assert!(matches!(outcome(["75", "75"]), Outcome::Stopped));
    assert!(matches!(outcome(["0", "75"]), Outcome::Stopped));
    assert_eq!(failed(outcome(["0", "93"])).exit_code, 93);
}
