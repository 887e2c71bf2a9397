//! Ranks that get nothing done any more, and who is named for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cordee_launch::{Deadlines, Guilt, Pages, ProcessState, StepTimes, Watch};

use crate::Test;
use crate::stage::{Stage, failed};

pub(crate) const TESTS: &[Test] = &[
    ("hangs::a_stopped_rank_is_named", a_stopped_rank_is_named),
    (
        "hangs::a_rank_that_never_comes_is_named",
        a_rank_that_never_comes_is_named,
    ),
    (
        "hangs::a_rank_that_is_stuck_by_itself_is_named",
        a_rank_that_is_stuck_by_itself_is_named,
    ),
    (
        "hangs::ranks_that_get_on_are_left_alone",
        ranks_that_get_on_are_left_alone,
    ),
    (
        "hangs::a_request_reaches_a_worker_without_a_handler",
        a_request_reaches_a_worker_without_a_handler,
    ),
];

fn watched(parts: &[&str]) -> Stage {
    let mut stage = Stage::new(parts.len(), &[&["by-rank"], parts].concat());
    stage.launch.pages = Some(Pages::new(parts.len()).unwrap());
    stage.launch.devices = (0..parts.len()).map(|rank| format!("GPU {rank}")).collect();
    stage.launch.watch = Some(Watch {
        deadlines: Deadlines {
            step: Duration::from_millis(500),
            phase: Duration::from_secs(5),
        },
        times: Arc::new(Mutex::new(StepTimes::default())),
    });
    stage
}

fn a_stopped_rank_is_named() {
    let trained = "page-step:1+page-step:2+sleep:200+page-step:3+page-call:7";
    let stop = format!("{trained}+page-done:7+kill-self:19");
    let stage = watched(&[
        &format!("{trained}+hang"),
        &stop,
        &format!("{trained}+hang"),
    ]);
    let started = Instant::now();
    let (outcome, _) = stage.run();
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    let report = failed(outcome);
    assert_eq!((report.rank, report.exit_code), (1, 95));
    let hang = report.hang.as_ref().unwrap();
    assert_eq!((&hang.guilty[..], hang.guilt), (&[1][..], Guilt::Stopped));
    let text = report.render();
    for part in [
        "hang: rank 1 (GPU 1, ",
        "is to blame: it is stopped",
        "rank 1: step 3, after all_reduce #7 of 64 bytes, stopped",
        "ranks 0 and 2: step 3, in all_reduce #7 of 64 bytes, #0 completed, sleeping",
    ] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    assert!(text.lines().count() <= 5, "{text}");
    let file = std::fs::read_to_string(&hang.file).unwrap();
    assert!(file.contains("\"guilt\": \"stopped\""), "{file}");
}

fn a_rank_that_never_comes_is_named() {
    let trained = "page-step:1+page-step:2+sleep:200+page-step:3";
    let waits = format!("{trained}+page-call:7+hang");
    let stage = watched(&[&waits, &format!("{trained}+hang")]);
    let hang = failed(stage.run().0).hang.unwrap();
    assert_eq!(
        (&hang.guilty[..], hang.guilt),
        (&[1][..], Guilt::NeverArrived)
    );
    assert_eq!(hang.ranks[1].process, ProcessState::Sleeping);
    let text = hang.render();
    assert!(text.contains("it never came to all_reduce #7"), "{text}");
    // Where it is, as a debugger or the kernel tells; neither has to be there.
    println!("    {}", text.replace('\n', "\n    "));
}

fn a_rank_that_is_stuck_by_itself_is_named() {
    let stage = watched(&["page-step:1+page-step:2+sleep:200+page-step:3+hang"]);
    let hang = failed(stage.run().0).hang.unwrap();
    assert_eq!((&hang.guilty[..], hang.guilt), (&[0][..], Guilt::Quiet));
}

fn ranks_that_get_on_are_left_alone() {
    let part: Vec<_> = (1..8)
        .map(|step| format!("page-step:{step}+sleep:300"))
        .collect();
    let part = part.join("+");
    let stage = watched(&[&part, &part]);
    let (outcome, _) = stage.run();
    assert!(
        matches!(outcome, cordee_launch::Outcome::Done),
        "{outcome:?}"
    );
}

fn a_request_reaches_a_worker_without_a_handler() {
    let stop = cordee_launch::StopRequests::new().unwrap();
    let stage = watched(&["sleep:300+page-wait-for-stop+exit:75"]);
    let asks = stop.clone();
    let asking = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        asks.request();
    });
    let outcome = stage.run_with(&mut crate::stage::Recorder::default(), &stop);
    asking.join().unwrap();
    assert!(
        matches!(outcome, cordee_launch::Outcome::Stopped),
        "{outcome:?}"
    );
}
