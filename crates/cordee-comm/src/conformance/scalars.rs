//! Small values of the host, and waiting.

use std::{thread, time::Duration};

use super::{Bench, Done, Number};

pub(super) fn sum_scalars(bench: &mut Bench<'_, '_>) -> Done {
    let rank = bench.group.rank();
    // The last is more than passes at once.
    for len in [0, 1, 2, 17, 70_000] {
        let mut values: Vec<f64> = (0..len).map(|index| bench.value(rank, index)).collect();
        bench.group.sum_scalars(&mut values)?;
        expect_sums(bench, &values, |index| index);
    }
    Ok(())
}

fn expect_sums(bench: &mut Bench<'_, '_>, values: &[f64], index_of: impl Fn(usize) -> usize) {
    let wrong = values.iter().enumerate().find_map(|(index, value)| {
        let expected = bench.sum::<f64>(index_of(index));
        (value.bits() != expected.bits()).then_some((index, *value, expected))
    });
    if let Some((index, value, expected)) = wrong {
        bench.expect_that(false, || {
            format!("value {index} is {value} where {expected} is expected")
        });
    }
}

/// Every rank gives another number of bytes, none and many among them.
pub(super) fn gather_bytes(bench: &mut Bench<'_, '_>) -> Done {
    let (rank, world_size) = (bench.group.rank(), bench.group.world_size());
    let given = |rank: usize, round: usize| -> Vec<u8> {
        let len = [0, 5, 300_000, 1][(rank + round) % 4];
        (0..len)
            .map(|index| (index * 7 + rank * 31 + round) as u8)
            .collect()
    };
    for round in 0..5 {
        let gathered = bench.group.gather_bytes(&given(rank, round))?;
        let right = (0..world_size).all(|rank| gathered.get(rank) == Some(&given(rank, round)));
        bench.expect_that(right && gathered.len() == world_size, || {
            format!("round {round}: other bytes than were given")
        });
    }
    Ok(())
}

/// Ranks that take their time, each in turn: nothing goes wrong, and the waiting is counted.
pub(super) fn late_ranks(bench: &mut Bench<'_, '_>) -> Done {
    let (rank, world_size) = (bench.group.rank(), bench.group.world_size());
    let pause = Duration::from_millis(10);
    let mut buffer = bench.make::<f32>(1000)?;
    for late in 0..world_size {
        let mut longest = 0.0_f64;
        // A busy machine may hold up the others as well, but not every time.
        for _ in 0..4 {
            bench.fill_own::<f32>(&mut buffer)?;
            bench.group.barrier()?;
            let before = bench.group.seconds();
            if rank == late {
                thread::sleep(pause);
            }
            bench.group.all_reduce(&mut buffer, 0..1000)?;
            bench.group.wait()?;
            longest = longest.max(bench.group.seconds() - before);
            bench.expect::<f32>("a sum with a late rank", &buffer, 0..1000, Bench::sum)?;
            let mut values = [bench.value(rank, late)];
            bench.group.sum_scalars(&mut values)?;
            expect_sums(bench, &values, |_| late);
        }
        bench.expect_that(rank == late || longest > pause.as_secs_f64() / 2.0, || {
            format!(
                "{longest} s are counted for waiting for rank {late}, which was late by {pause:?}"
            )
        });
    }
    for _ in 0..200 {
        bench.group.barrier()?;
    }
    Ok(())
}
