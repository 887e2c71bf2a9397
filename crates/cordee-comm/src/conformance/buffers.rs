//! Collectives on buffers.

use std::{sync::mpsc, thread};

use cordee_memory::Buffer;

use super::{Bench, CaseError, Done, Number, fill};
use crate::shard_range;

/// Empty, one, fewer than ranks, odd, one block of shards, equal shards for up to eight ranks, more than any
/// piece or block at once.
const LENS: [usize; 9] = [0, 1, 3, 63, 64, 1000, 4097, 64 * 840, 140_001];

/// Runs `check` on every length, in a buffer of this rank's own and, where buffers are of the host, in
/// one of the group; twice in the same, where that is cheap.
fn on_all<T: Number>(
    bench: &mut Bench<'_, '_>,
    check: fn(&mut Bench<'_, '_>, &mut Buffer) -> Done,
) -> Done {
    for len in LENS {
        let mut own = bench.make::<T>(len)?;
        check(bench, &mut own)?;
        if len < 1000 {
            check(bench, &mut own)?;
        }
        if own.is_on_device() {
            continue;
        }
        let mut shared = bench.group.allocate(own.dtype(), len)?;
        let zero = shared.as_bytes()?.iter().all(|&byte| byte == 0);
        bench.expect_that(zero, || "new memory is not zero".to_owned());
        check(bench, &mut shared)?;
        if len < 1000 {
            check(bench, &mut shared)?;
        }
    }
    Ok(())
}

pub(super) fn all_reduce<T: Number>(bench: &mut Bench<'_, '_>) -> Done {
    on_all::<T>(bench, |bench, buffer| {
        bench.fill_own::<T>(buffer)?;
        let len = buffer.len();
        bench.group.all_reduce(buffer, 0..len)?;
        bench.group.wait()?;
        bench.expect::<T>("all_reduce", buffer, 0..len, Bench::sum)
    })
}

pub(super) fn reduce_scatter<T: Number>(bench: &mut Bench<'_, '_>) -> Done {
    on_all::<T>(bench, |bench, buffer| {
        bench.fill_own::<T>(buffer)?;
        let len = buffer.len();
        let shard = bench.group.reduce_scatter(buffer, 0..len)?;
        bench.group.wait()?;
        let expected = shard_range(0..len, bench.group.world_size(), bench.group.rank());
        bench.expect_that(shard == expected, || {
            format!("the shard is {shard:?} where {expected:?} is expected")
        });
        bench.expect::<T>("reduce_scatter", buffer, expected, Bench::sum)
    })
}

pub(super) fn all_gather<T: Number>(bench: &mut Bench<'_, '_>) -> Done {
    on_all::<T>(bench, |bench, buffer| {
        let (rank, world_size) = (bench.group.rank(), bench.group.world_size());
        let len = buffer.len();
        let own = shard_range(0..len, world_size, rank);
        fill::<T>(buffer, |index| {
            let is_own = own.contains(&index);
            if is_own {
                bench.value(rank, index)
            } else {
                T::of(0.0)
            }
        })?;
        bench.group.all_gather(buffer, 0..len)?;
        bench.group.wait()?;
        for owner in 0..world_size {
            let shard = shard_range(0..len, world_size, owner);
            bench.expect::<T>("all_gather", buffer, shard, |bench, index| {
                bench.value(owner, index)
            })?;
        }
        Ok(())
    })
}

pub(super) fn broadcast<T: Number>(bench: &mut Bench<'_, '_>) -> Done {
    on_all::<T>(bench, |bench, buffer| {
        let len = buffer.len();
        for root in [bench.group.world_size() - 1, 0] {
            bench.fill_own::<T>(buffer)?;
            bench.group.broadcast(buffer, 0..len, root)?;
            bench.group.wait()?;
            bench.expect::<T>("broadcast", buffer, 0..len, |bench, index| {
                bench.value(root, index)
            })?;
        }
        Ok(())
    })
}

/// What lies outside the range stays as it was, and what the ranges of one buffer hold is the same as when
/// it is reduced whole. The calls follow each other without a wait.
pub(super) fn parts_of_a_buffer<T: Number>(bench: &mut Bench<'_, '_>) -> Done {
    let len = 10_000;
    let mut buffers = vec![bench.make::<T>(len)?];
    if !buffers[0].is_on_device() {
        buffers.push(bench.group.allocate(T::DTYPE, len)?);
    }
    let rank = bench.group.rank();
    for mut buffer in buffers {
        let buffer = &mut buffer;
        bench.fill_own::<T>(buffer)?;
        bench.group.all_reduce(buffer, 65..1000)?;
        bench.group.all_reduce(buffer, 5000..5001)?;
        bench.group.all_reduce(buffer, 5500..5500)?;
        // Reduce-scatter and all-gather of a part, as a sharded optimizer has it.
        let shard = bench.group.reduce_scatter(buffer, 6000..9001)?;
        let expected = shard_range(6000..9001, bench.group.world_size(), rank);
        bench.expect_that(shard == expected, || {
            format!("the shard of a part is {shard:?} where {expected:?} is expected")
        });
        bench.group.all_gather(buffer, 6000..9001)?;
        bench.group.wait()?;
        for summed in [65..1000, 5000..5001, 6000..9001] {
            bench.expect::<T>("a part", buffer, summed, Bench::sum)?;
        }
        for left in [0..65, 1000..5000, 5001..6000, 9001..len] {
            bench.expect::<T>("what is outside the parts", buffer, left, |bench, index| {
                bench.value(rank, index)
            })?;
        }
    }
    Ok(())
}

/// Several buffers under way at the same time, before one wait for all.
pub(super) fn many_buffers_at_once<T: Number>(bench: &mut Bench<'_, '_>) -> Done {
    let lens = [1, 5000, 64, 4096, 0, 30_001];
    let mut buffers = Vec::new();
    for len in lens {
        let mut buffer = bench.make::<T>(len)?;
        bench.fill_own::<T>(&mut buffer)?;
        buffers.push(buffer);
    }
    for round in 0..3 {
        for (buffer, len) in buffers.iter_mut().zip(lens) {
            match round {
                0 => bench.group.all_reduce(buffer, 0..len)?,
                // Of what is the same everywhere already.
                1 => bench.group.broadcast(buffer, 0..len, 0)?,
                _ => bench.group.all_gather(buffer, 0..len)?,
            }
        }
        bench.group.fence()?;
    }
    bench.group.wait()?;
    for (buffer, len) in buffers.iter().zip(lens) {
        bench.expect::<T>("one of many", buffer, 0..len, Bench::sum)?;
    }
    Ok(())
}

/// What the device is given after a fence sees what was begun before it, and what is begun after that sees
/// what the device was given.
pub(super) fn a_fence_alone<T: Number>(bench: &mut Bench<'_, '_>) -> Done {
    let len = 70_000;
    let mut buffer = bench.make::<T>(len)?;
    for root in 0..bench.group.world_size().min(3) {
        bench.fill_own::<T>(&mut buffer)?;
        bench.group.all_reduce(&mut buffer, 0..len)?;
        bench.group.fence()?;
        bench.expect::<T>("a sum after a fence", &buffer, 0..len, Bench::sum)?;
        bench.fill_own::<T>(&mut buffer)?;
        bench.group.broadcast(&mut buffer, 0..len, root)?;
        bench.group.fence()?;
        bench.expect::<T>("a copy after a fence", &buffer, 0..len, |bench, index| {
            bench.value(root, index)
        })?;
    }
    Ok(bench.group.wait()?)
}

/// Buckets are reduced on a thread of their own while this one still writes the next.
pub(super) fn buckets_sent_to_a_thread<T: Number>(bench: &mut Bench<'_, '_>) -> Done {
    const LEN: usize = 5000;
    let mut buckets = Vec::new();
    for number in 0..6 {
        let bucket = bench.make::<T>(LEN)?;
        let shared = number % 2 == 0 && !bucket.is_on_device();
        buckets.push(if shared {
            bench.group.allocate(T::DTYPE, LEN)?
        } else {
            bucket
        });
    }
    let (rank, in_order) = (bench.group.rank(), bench.setting.in_rank_order);
    let (give, taken) = mpsc::channel::<Buffer>();
    let group = &mut *bench.group;
    let reduced = thread::scope(|scope| {
        let worker = scope.spawn(move || -> Result<Vec<Buffer>, CaseError> {
            let mut reduced = Vec::new();
            for mut bucket in taken {
                group.all_reduce(&mut bucket, 0..LEN)?;
                reduced.push(bucket);
            }
            group.wait()?;
            Ok(reduced)
        });
        for (number, mut bucket) in buckets.into_iter().enumerate() {
            fill::<T>(&mut bucket, |index| {
                super::numbers::value(in_order, rank, number * LEN + index)
            })?;
            // A worker that is gone says why below.
            let _ = give.send(bucket);
        }
        drop(give);
        worker.join().expect("a thread that only passes errors on")
    })?;
    for (number, bucket) in reduced.iter().enumerate() {
        bench.expect::<T>("a bucket", bucket, 0..LEN, |bench, index| {
            bench.sum(number * LEN + index)
        })?;
    }
    Ok(())
}
