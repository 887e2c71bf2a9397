//! Ranks as threads that fail, disagree or do not come: an error that says so, and no hang.

use std::{
    thread,
    time::{Duration, Instant},
};

use cordee_comm::{CommError, Operation, ProcessGroup};
use cordee_memory::DType;

use crate::{AT_ONCE, PATIENCE, equipment, threads::threads};

#[test]
fn a_rank_that_does_not_come_is_named_by_the_deadline() {
    let Some((library, _)) = equipment() else {
        return;
    };
    let timeout = Duration::from_millis(500);
    let errors = threads(library, 2, timeout, |mut group, gpu| {
        let mut buffer = gpu.zeroed(DType::F32, 1000).unwrap();
        group.all_reduce(&mut buffer, 0..1000).unwrap();
        group.wait().unwrap();
        if group.rank() == 1 {
            thread::sleep(timeout * 4);
        }
        let error = match group.all_reduce(&mut buffer, 0..500) {
            Ok(()) => group.wait().unwrap_err(),
            Err(error) => error,
        };
        // Nothing is left under way that could keep memory from being given back.
        drop(buffer);
        error
    });
    let CommError::Timeout {
        rank: 0,
        call,
        waited,
        missing,
        ..
    } = &errors[0]
    else {
        panic!("{errors:?}")
    };
    assert_eq!((call.operation, call.bytes()), (Operation::AllReduce, 2000));
    assert!(missing == &[1] && *waited >= timeout, "{errors:?}");
    // Joining was #1, showing each other the id #2, a barrier #3.
    let text = errors[0].to_string();
    assert!(
        text.contains("all_reduce #5 of 2000 bytes (f32 0..500 of a device's buffer) for rank 1"),
        "{text}"
    );
    assert!(
        text.contains("rank 0: all_reduce #5 of 2000 bytes begun, #4 completed"),
        "{text}"
    );
    assert!(
        text.contains("rank 1: all_reduce #4 of 4000 bytes completed"),
        "{text}"
    );
    assert!(
        matches!(&errors[1], CommError::PeerFailed { rank: 1, peer: 0, reason, .. } if reason.contains("for rank 1")),
        "{errors:?}"
    );
}

#[test]
fn a_rank_that_fails_is_heard_at_once() {
    let Some((library, _)) = equipment() else {
        return;
    };
    let errors = threads(library, 2, PATIENCE, |mut group, gpu| {
        let mut buffer = gpu.zeroed(DType::F64, 1000).unwrap();
        if group.rank() == 1 {
            thread::sleep(Duration::from_millis(100));
            group.fail("the disk is full");
            return None;
        }
        group.reduce_scatter(&mut buffer, 0..1000).unwrap();
        group.fence().unwrap();
        let started = Instant::now();
        let error = group.wait().unwrap_err();
        assert!(started.elapsed() < AT_ONCE, "told, not waited for");
        Some(error.to_string())
    });
    assert_eq!(
        errors[0].as_deref(),
        Some(
            "rank 0 cannot finish reduce_scatter #4 of 8000 bytes (f64 0..1000 of a device's buffer): rank 1 \
             failed: the disk is full"
        )
    );
}

#[test]
fn a_rank_that_leaves_after_the_last_call_disturbs_nobody() {
    let Some((library, _)) = equipment() else {
        return;
    };
    for _ in 0..10 {
        threads(library, 2, PATIENCE, |mut group, gpu| {
            let mut buffer = gpu.zeroed(DType::F32, 100_000).unwrap();
            group.all_reduce(&mut buffer, 0..100_000).unwrap();
            group.finish().unwrap();
        });
    }
}

#[test]
fn different_calls_are_named_long_before_the_deadline() {
    let Some((library, _)) = equipment() else {
        return;
    };
    let errors = threads(library, 2, PATIENCE, |mut group, gpu| {
        let len = 1000 + group.rank();
        let mut buffer = gpu.zeroed(DType::Bf16, len).unwrap();
        let started = Instant::now();
        let begun = group.all_reduce(&mut buffer, 0..len);
        let error = begun.and_then(|()| group.wait()).unwrap_err();
        assert!(started.elapsed() < AT_ONCE, "found, not waited for");
        error
    });
    let named = |error: &CommError| {
        let text = error.to_string();
        matches!(
            error,
            CommError::Mismatch {
                first: 0,
                second: 1,
                ..
            }
        ) && text.contains("rank 0 is in all_reduce #4 of 2000 bytes")
            && text.contains("rank 1 in all_reduce #4 of 2002 bytes")
    };
    // The other may hear of it in place of seeing it.
    assert!(errors.iter().any(named), "{errors:?}");
    for error in &errors {
        assert!(
            error.to_string().contains("not in the same collective"),
            "{error}"
        );
    }
}

/// Ranks that went different ways, though every transfer came to an end.
#[test]
fn another_order_of_equal_calls_is_found() {
    let Some((library, _)) = equipment() else {
        return;
    };
    let errors = threads(library, 2, PATIENCE, |mut group, gpu| {
        let mut buffer = gpu.zeroed(DType::F32, 1000).unwrap();
        // The same for NCCL: as many elements, but others.
        let start = 100 * group.rank();
        group
            .all_reduce(&mut buffer, start..start + 500)
            .and_then(|()| group.wait())
    });
    let told = errors.iter().filter_map(|result| result.as_ref().err());
    let told: Vec<_> = told.map(ToString::to_string).collect();
    assert!(
        told.iter()
            .any(|text| text.contains("0..500") && text.contains("100..600")),
        "{told:?}"
    );
}

#[test]
fn wrong_arguments_are_refused_and_told() {
    let Some((library, _)) = equipment() else {
        return;
    };
    let errors = threads(library, 2, PATIENCE, |mut group, gpu| {
        let mut buffer = gpu.zeroed(DType::F32, 100).unwrap();
        if group.rank() == 1 {
            group.broadcast(&mut buffer, 0..101, 0)
        } else {
            group.barrier()
        }
        .unwrap_err()
        .to_string()
    });
    for error in errors {
        assert!(
            error.contains("elements 0..101 are not inside a buffer of 100"),
            "{error}"
        );
    }
}
