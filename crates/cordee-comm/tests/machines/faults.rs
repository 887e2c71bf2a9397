//! Ranks that fail, disagree or do not come, with a network between them.

use std::{
    thread,
    time::{Duration, Instant},
};

use cordee_comm::{CommError, MachinesGroup, ProcessGroup, Result};
use cordee_memory::{Buffer, DType};

use crate::job::{PATIENCE, ranks, seats};

/// Much less than anybody's patience: an error that was told, not waited for.
const AT_ONCE: Duration = Duration::from_secs(10);

fn reduce(group: &mut MachinesGroup, len: usize) -> Result<()> {
    let mut buffer = Buffer::zeroed(DType::F32, 100_000).unwrap();
    group.all_reduce(&mut buffer, 0..len)
}

/// What every rank but `failing` says of what that one does.
fn of_others(sizes: &[usize], failing: usize, fails: impl Fn(MachinesGroup) + Sync) -> Vec<String> {
    let told = ranks(seats(sizes), |rank, seat| {
        if rank == failing {
            fails(seat.join(PATIENCE).unwrap());
            return None;
        }
        let begun = Instant::now();
        // Some may not have heard yet that all have joined.
        let error = match seat.join(PATIENCE) {
            Ok(mut group) => (0..1000)
                .find_map(|_| reduce(&mut group, 100_000).err())
                .unwrap(),
            Err(error) => error,
        };
        assert!(begun.elapsed() < AT_ONCE, "{error}");
        assert!(matches!(error, CommError::PeerFailed { .. }), "{error:?}");
        Some(error.to_string())
    });
    told.into_iter().flatten().collect()
}

#[test]
fn a_rank_that_fails_is_heard_of_on_all_machines() {
    let told = of_others(&[2, 1, 2], 4, |mut group| group.fail("no room on the disk"));
    assert_eq!(told.len(), 4);
    for text in told {
        assert!(text.contains("no room on the disk"), "{text}");
    }
}

#[test]
fn a_rank_that_leaves_early_is_heard_of_on_all_machines() {
    for text in of_others(&[1, 2], 0, drop) {
        assert!(text.contains("left the group"), "{text}");
    }
}

#[test]
fn leaving_after_the_last_call_disturbs_nobody() {
    for round in 0..20 {
        ranks(seats(&[1, 1, 1]), |rank, seat| {
            let mut group = seat.join(PATIENCE).unwrap();
            // Whoever is quick is gone while the others are still at it.
            reduce(&mut group, 100_000).unwrap();
            if rank == round % 3 {
                thread::sleep(Duration::from_millis(3));
            }
            group.sum_scalars(&mut [1.0]).unwrap();
        });
    }
}

/// The last call may be a large one: what is on its way when its sender goes still comes.
#[test]
fn leaving_after_a_large_last_call_loses_nothing() {
    let len = 2 << 20;
    for round in 0..10 {
        ranks(seats(&[1, 1, 1]), |rank, seat| {
            let mut group = seat.join(PATIENCE).unwrap();
            let mut buffer = Buffer::zeroed(DType::F32, len).unwrap();
            let root = round % 3;
            if rank == root {
                buffer.as_mut_slice::<f32>().unwrap().fill(1.5);
            }
            if round < 6 {
                group.broadcast(&mut buffer, 0..len, root).unwrap();
            } else {
                group.all_reduce(&mut buffer, 0..len).unwrap();
            }
            drop(group);
            let values = buffer.as_slice::<f32>().unwrap();
            assert!(
                values
                    .iter()
                    .all(|value| value.to_bits() == 1.5_f32.to_bits()),
                "rank {rank}"
            );
        });
    }
}

/// Whoever waits for a rank that is not its neighbour leaves it to that one's neighbours to name it.
#[test]
fn a_silent_rank_is_named_on_all_machines() {
    let timeout = Duration::from_millis(500);
    for round in 0..3 {
        let told = ranks(seats(&[1, 1, 1]), |rank, seat| {
            let mut group = seat.join(timeout).unwrap();
            if rank == 2 {
                thread::sleep(6 * timeout);
                return None;
            }
            if rank == 1 && round == 1 {
                // The clock of the other one is ahead.
                thread::sleep(timeout / 5);
            }
            let len = if round == 2 { 100_000 } else { 10 };
            Some(reduce(&mut group, len).unwrap_err())
        });
        for error in told.into_iter().flatten() {
            let named = match &error {
                CommError::Timeout { missing, .. } => missing[0],
                CommError::PeerFailed { peer, .. } => *peer,
                _ => panic!("{error}"),
            };
            assert_eq!(named, 2, "{error}");
        }
    }
}

#[test]
fn different_calls_are_named() {
    let told = ranks(seats(&[1, 1]), |rank, seat| {
        let mut group = seat.join(PATIENCE).unwrap();
        let error = if rank == 0 {
            reduce(&mut group, 1000).unwrap_err()
        } else {
            reduce(&mut group, 1001).unwrap_err()
        };
        error.to_string()
    });
    let said = told.iter().filter(|text| {
        text.contains("not in the same collective: rank 0 is in all_reduce #3 of 4000 bytes")
            && text.contains("rank 1 in all_reduce #3 of 4004 bytes")
    });
    assert!(said.count() >= 1, "{told:?}");
}

#[test]
fn a_rank_that_is_late_is_named_by_the_next_machine() {
    let timeout = Duration::from_millis(500);
    let told = ranks(seats(&[1, 1]), |rank, seat| {
        let mut group = seat.join(timeout).unwrap();
        if rank == 1 {
            thread::sleep(3 * timeout);
            return None;
        }
        let error = reduce(&mut group, 1000).unwrap_err();
        let CommError::Timeout { missing, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(missing, &[1]);
        Some(error.to_string())
    });
    let text = told[0].as_ref().unwrap();
    assert!(
        text.contains("rank 0 waited 0.5 s in all_reduce #3"),
        "{text}"
    );
}

#[test]
fn a_machine_that_never_comes_is_told_of() {
    let timeout = Duration::from_millis(600);
    let mut seats = seats(&[1, 1]);
    let upper = seats.pop().unwrap();
    // Nobody listens there any more.
    seats.clear();
    let error = upper.join(timeout).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(
            error,
            CommError::Unreachable {
                rank: 1,
                peer: 0,
                ..
            }
        ),
        "{text}"
    );
    assert!(text.contains("127.0.0.1:"), "{text}");
}
