//! Ranks that fail, disagree or do not come: every other rank gets an error that says so.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use cordee_comm::{CommError, Operation, ProcessGroup, Result, SharedMemoryGroup};
use cordee_memory::{Buffer, DType};

use crate::threads::{PATIENCE, threads};

/// Much less than anybody's patience: an error that was told, not waited for.
const AT_ONCE: Duration = Duration::from_secs(10);

fn reduce(group: &mut SharedMemoryGroup, range: Range<usize>) -> Result<()> {
    let mut buffer = Buffer::zeroed(DType::F32, 100_000).unwrap();
    group.all_reduce(&mut buffer, range)
}

/// Runs two ranks that call different things, and returns what both say of it.
fn disagreement(calls: [fn(&mut SharedMemoryGroup) -> Result<()>; 2]) -> String {
    let errors = threads(2, PATIENCE, |rank, group| {
        let mut group = group.unwrap();
        group.barrier().unwrap();
        let error = calls[rank](&mut group).unwrap_err();
        assert!(
            matches!(
                error,
                CommError::Mismatch {
                    first: 0,
                    second: 1,
                    ..
                }
            ),
            "{error:?}"
        );
        error.to_string()
    });
    let [first, second] = [0, 1].map(|rank| {
        errors[rank]
            .strip_prefix(&format!("rank {rank}: "))
            .unwrap()
    });
    assert_eq!(first, second, "both ranks say the same");
    first.to_owned()
}

#[test]
fn different_calls_are_named() {
    let text = disagreement([|group| reduce(group, 0..1024), |group| group.barrier()]);
    assert_eq!(
        text,
        "ranks are not in the same collective: rank 0 is in all_reduce #2 of 4096 bytes (f32 0..1024 of a private \
         buffer), rank 1 in barrier #2: every rank must make the same calls in the same order with the same arguments"
    );
}

#[test]
fn different_arguments_are_named() {
    let text = disagreement([
        |group| reduce(group, 0..1024),
        |group| reduce(group, 0..1025),
    ]);
    assert!(
        text.contains("4096 bytes") && text.contains("4100 bytes"),
        "{text}"
    );
    let text = disagreement([|group| reduce(group, 0..10), |group| reduce(group, 1..11)]);
    assert!(text.contains("0..10") && text.contains("1..11"), "{text}");
    let text = disagreement([
        |group| group.allocate(DType::F32, 64).map(|_| ()),
        |group| group.allocate(DType::F64, 64).map(|_| ()),
    ]);
    assert!(
        text.contains("f32 0..64") && text.contains("f64 0..64"),
        "{text}"
    );
    let text = disagreement([
        |group| group.broadcast(&mut Buffer::zeroed(DType::F32, 64).unwrap(), 0..64, 0),
        |group| group.broadcast(&mut Buffer::zeroed(DType::F32, 64).unwrap(), 0..64, 1),
    ]);
    assert!(
        text.contains("from rank 0") && text.contains("from rank 1"),
        "{text}"
    );
    let text = disagreement([
        |group| group.sum_scalars(&mut [1.0]),
        |group| group.sum_scalars(&mut [1.0, 2.0]),
    ]);
    assert!(
        text.contains("8 bytes") && text.contains("16 bytes"),
        "{text}"
    );
}

/// One rank reduces in place what the other holds privately.
#[test]
fn different_memory_is_named() {
    let errors = threads(2, PATIENCE, |rank, group| {
        let mut group = group.unwrap();
        let mut shared = group.allocate(DType::F32, 10).unwrap();
        let mut private = Buffer::zeroed(DType::F32, 10).unwrap();
        group
            .all_reduce(if rank == 0 { &mut shared } else { &mut private }, 0..10)
            .unwrap_err()
            .to_string()
    });
    for error in errors {
        assert!(
            error.contains("of shared buffer 0)") && error.contains("of a private buffer)"),
            "{error}"
        );
    }
}

#[test]
fn a_late_rank_is_named_and_told() {
    let timeout = Duration::from_millis(300);
    let errors = threads(3, timeout, |rank, group| {
        let mut group = group.unwrap();
        let mut buffer = group.allocate(DType::F32, 1000).unwrap();
        buffer.as_mut_slice::<f32>().unwrap().fill(1.0);
        if rank == 2 {
            thread::sleep(timeout * 4);
        }
        let error = group.all_reduce(&mut buffer, 0..1000).unwrap_err();
        // Cut off from what the others might still write.
        assert!(
            buffer
                .as_slice::<f32>()
                .unwrap()
                .iter()
                .all(|&element| element == 0.0)
        );
        let after = group.barrier().unwrap_err();
        assert!(
            matches!(&after, CommError::Broken { reason, .. } if *reason == error.to_string()),
            "{after}"
        );
        error
    });
    let waited_out = |error: &CommError| match error {
        CommError::Timeout {
            rank,
            call,
            waited,
            missing,
            records,
        } => {
            // Where each rank stood: the late one has made its buffer, and nothing since.
            assert_eq!(records.behind(call.sequence), [2], "{error}");
            assert!(
                error
                    .to_string()
                    .contains("rank 2: allocate #1 of 4000 bytes completed"),
                "{error}"
            );
            assert!(
                *rank < 2 && missing == &[2] && *waited >= timeout,
                "{error}"
            );
            assert_eq!(
                (call.operation, call.sequence, call.bytes()),
                (Operation::AllReduce, 2, 4000)
            );
            true
        }
        _ => false,
    };
    assert!(errors[..2].iter().any(waited_out), "{errors:?}");
    assert!(
        matches!(&errors[2], CommError::PeerFailed { rank: 2, peer: 0 | 1, reason, .. } if reason.contains("for rank 2")),
        "{errors:?}"
    );
}

/// Runs `end` on rank 1 while the others wait for it, and returns what they say.
fn others_say(end: fn(SharedMemoryGroup)) -> Vec<String> {
    let errors = threads(3, PATIENCE, |rank, group| {
        let mut group = group.unwrap();
        group.barrier().unwrap();
        let started = Instant::now();
        if rank == 1 {
            thread::sleep(Duration::from_millis(100));
            end(group);
            return None;
        }
        let error = reduce(&mut group, 0..100).unwrap_err();
        assert!(started.elapsed() < AT_ONCE, "told, not waited for");
        assert!(
            matches!(error, CommError::PeerFailed { peer: 1, .. }),
            "{error:?}"
        );
        Some(error.to_string())
    });
    errors.into_iter().flatten().collect()
}

#[test]
fn a_rank_that_fails_is_heard_at_once() {
    assert_eq!(
        others_say(|mut group| group.fail("the disk is full")),
        [0, 2].map(|rank| format!(
            "rank {rank} cannot finish all_reduce #2 of 400 bytes (f32 0..100 of a private buffer): rank 1 failed: \
             the disk is full"
        ))
    );
}

#[test]
fn a_rank_that_leaves_is_heard_at_once() {
    for error in others_say(drop) {
        assert!(
            error.ends_with("rank 1 failed: it left the group"),
            "{error}"
        );
    }
}

#[test]
fn a_rank_that_panics_is_heard_at_once() {
    let errors = others_say(|group| {
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _group = group;
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
    });
    for error in errors {
        assert!(error.ends_with("rank 1 failed: it panicked"), "{error}");
    }
}

#[test]
fn wrong_arguments_are_refused_and_told() {
    for (rank_1, expected) in [
        (
            reduce as fn(&mut SharedMemoryGroup, Range<usize>) -> Result<()>,
            "elements 0..100001 are not inside",
        ),
        (
            |group, range| {
                group.broadcast(&mut Buffer::zeroed(DType::F32, 100_001).unwrap(), range, 2)
            },
            "from rank 2: there are only 2 ranks",
        ),
    ] {
        let errors = threads(2, PATIENCE, |rank, group| {
            let mut group = group.unwrap();
            if rank == 1 {
                rank_1(&mut group, 0..100_001)
            } else {
                group.barrier()
            }
            .unwrap_err()
            .to_string()
        });
        assert!(errors[1].contains(expected), "{errors:?}");
        assert!(
            errors[0].contains("rank 1 failed") && errors[0].contains(expected),
            "{errors:?}"
        );
    }
}

/// A rank may be gone while others still wake up from the last call they had in common.
#[test]
fn leaving_after_the_last_call_disturbs_nobody() {
    for _ in 0..200 {
        threads(4, PATIENCE, |_, group| group.unwrap().barrier().unwrap());
    }
}
