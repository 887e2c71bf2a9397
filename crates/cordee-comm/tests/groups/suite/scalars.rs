//! Bodies about small values and about waiting.

use std::{thread, time::Duration};

use cordee_comm::ProcessGroup;

use super::numbers::{assert_bits, sum, value};

pub(crate) fn sum_scalars(group: &mut dyn ProcessGroup) {
    let (rank, world_size) = (group.rank(), group.world_size());
    // The last is more than passes at once.
    for len in [0, 1, 2, 17, 70_000] {
        let mut values: Vec<f64> = (0..len).map(|index| value(rank, index)).collect();
        group.sum_scalars(&mut values).unwrap();
        assert_bits(&values, 0, |index| sum(world_size, index));
    }
}

/// Every rank gives another number of bytes, none and many among them.
pub(crate) fn gather_bytes(group: &mut dyn ProcessGroup) {
    let world_size = group.world_size();
    let given = |rank: usize, round: usize| -> Vec<u8> {
        let len = [0, 5, 300_000, 1][(rank + round) % 4];
        (0..len)
            .map(|index| (index * 7 + rank * 31 + round) as u8)
            .collect()
    };
    for round in 0..5 {
        let gathered = group.gather_bytes(&given(group.rank(), round)).unwrap();
        let expected: Vec<_> = (0..world_size).map(|rank| given(rank, round)).collect();
        assert!(gathered == expected, "round {round}");
    }
}

/// Ranks that take their time, each in turn: nothing goes wrong, and the waiting is counted.
pub(crate) fn late_ranks(group: &mut dyn ProcessGroup) {
    let (rank, world_size) = (group.rank(), group.world_size());
    let pause = Duration::from_millis(10);
    for late in 0..world_size {
        let mut longest = 0.0_f64;
        // A busy machine may hold up the others as well, but not every time.
        for _ in 0..4 {
            group.barrier().unwrap();
            let before = group.seconds();
            if rank == late {
                thread::sleep(pause);
            }
            let mut values = [value(rank, late)];
            group.sum_scalars(&mut values).unwrap();
            assert_bits(&values, 0, |_| sum(world_size, late));
            longest = longest.max(group.seconds() - before);
        }
        if rank != late {
            assert!(
                longest > pause.as_secs_f64() / 2.0,
                "rank {rank} waited {longest} s for rank {late}"
            );
        }
    }
    for _ in 0..200 {
        group.barrier().unwrap();
    }
}
