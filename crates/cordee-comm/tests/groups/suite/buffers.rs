//! Bodies about collectives on buffers.

use std::{sync::mpsc, thread};

use cordee_comm::{ProcessGroup, shard_range};
use cordee_memory::{Buffer, DType};

use super::numbers::{Number, assert_bits, sum, value};

/// Empty, one, fewer than ranks, odd, one block of shards, more than any piece or block at once.
const LENS: [usize; 8] = [0, 1, 3, 63, 64, 1000, 4097, 140_001];

/// Runs `check` on every length, in a buffer of the group and in one of the heap.
fn on_all<T: Number>(group: &mut dyn ProcessGroup, check: fn(&mut dyn ProcessGroup, &mut Buffer)) {
    for len in LENS {
        let mut shared = group.allocate(T::DTYPE, len).unwrap();
        assert!(
            shared
                .as_slice::<T>()
                .unwrap()
                .iter()
                .all(|element| element.bits() == 0),
            "new memory is zero"
        );
        check(group, &mut shared);
        if len < 1000 {
            check(group, &mut shared);
        }
        let mut private = Buffer::zeroed(T::DTYPE, len).unwrap();
        check(group, &mut private);
    }
}

fn fill<T: Number>(group: &dyn ProcessGroup, buffer: &mut Buffer) {
    let rank = group.rank();
    for (index, element) in buffer.as_mut_slice::<T>().unwrap().iter_mut().enumerate() {
        *element = value(rank, index);
    }
}

pub(crate) fn all_reduce(group: &mut dyn ProcessGroup) {
    fn check<T: Number>(group: &mut dyn ProcessGroup, buffer: &mut Buffer) {
        fill::<T>(group, buffer);
        let len = buffer.len();
        group.all_reduce(buffer, 0..len).unwrap();
        let world_size = group.world_size();
        assert_bits(buffer.as_slice::<T>().unwrap(), 0, |index| {
            sum(world_size, index)
        });
    }
    on_all::<f32>(group, check::<f32>);
    on_all::<f64>(group, check::<f64>);
}

pub(crate) fn reduce_scatter(group: &mut dyn ProcessGroup) {
    fn check<T: Number>(group: &mut dyn ProcessGroup, buffer: &mut Buffer) {
        fill::<T>(group, buffer);
        let (rank, world_size, len) = (group.rank(), group.world_size(), buffer.len());
        let shard = group.reduce_scatter(buffer, 0..len).unwrap();
        assert_eq!(shard, shard_range(0..len, world_size, rank));
        assert_bits(
            &buffer.as_slice::<T>().unwrap()[shard.clone()],
            shard.start,
            |index| sum(world_size, index),
        );
    }
    on_all::<f32>(group, check::<f32>);
    on_all::<f64>(group, check::<f64>);
}

pub(crate) fn all_gather(group: &mut dyn ProcessGroup) {
    fn check<T: Number>(group: &mut dyn ProcessGroup, buffer: &mut Buffer) {
        buffer.fill_zero().unwrap();
        let (rank, world_size, len) = (group.rank(), group.world_size(), buffer.len());
        let own = shard_range(0..len, world_size, rank);
        for index in own {
            buffer.as_mut_slice::<T>().unwrap()[index] = value(rank, index);
        }
        group.all_gather(buffer, 0..len).unwrap();
        for owner in 0..world_size {
            let shard = shard_range(0..len, world_size, owner);
            assert_bits(
                &buffer.as_slice::<T>().unwrap()[shard.clone()],
                shard.start,
                |index| value(owner, index),
            );
        }
    }
    on_all::<f32>(group, check::<f32>);
    on_all::<f64>(group, check::<f64>);
}

pub(crate) fn broadcast(group: &mut dyn ProcessGroup) {
    fn check<T: Number>(group: &mut dyn ProcessGroup, buffer: &mut Buffer) {
        let len = buffer.len();
        for root in [group.world_size() - 1, 0] {
            fill::<T>(group, buffer);
            group.broadcast(buffer, 0..len, root).unwrap();
            assert_bits(buffer.as_slice::<T>().unwrap(), 0, |index| {
                value(root, index)
            });
        }
    }
    on_all::<f32>(group, check::<f32>);
    on_all::<f64>(group, check::<f64>);
}

/// What lies outside the range stays as it was, and what the ranges of one buffer hold is the same
/// as when it is reduced whole.
pub(crate) fn parts_of_a_buffer(group: &mut dyn ProcessGroup) {
    let world_size = group.world_size();
    let rank = group.rank();
    let len = 10_000;
    let mut buffers = [
        group.allocate(DType::F32, len).unwrap(),
        Buffer::zeroed(DType::F32, len).unwrap(),
    ];
    for buffer in &mut buffers {
        fill::<f32>(group, buffer);
        group.all_reduce(buffer, 65..1000).unwrap();
        group.all_reduce(buffer, 5000..5001).unwrap();
        assert_bits(&buffer.as_slice::<f32>().unwrap()[..65], 0, |index| {
            value(rank, index)
        });
        assert_bits(&buffer.as_slice::<f32>().unwrap()[65..1000], 65, |index| {
            sum(world_size, index)
        });
        assert_bits(
            &buffer.as_slice::<f32>().unwrap()[1000..5000],
            1000,
            |index| value(rank, index),
        );
        assert_bits(
            &buffer.as_slice::<f32>().unwrap()[5000..5001],
            5000,
            |index| sum(world_size, index),
        );
        assert_bits(&buffer.as_slice::<f32>().unwrap()[5001..], 5001, |index| {
            value(rank, index)
        });
        // Reduce-scatter and all-gather of a part, as a sharded optimizer has it.
        let shard = group.reduce_scatter(buffer, 6000..9001).unwrap();
        assert_bits(
            &buffer.as_slice::<f32>().unwrap()[shard.clone()],
            shard.start,
            |index| sum(world_size, index),
        );
        group.all_gather(buffer, 6000..9001).unwrap();
        assert_bits(
            &buffer.as_slice::<f32>().unwrap()[6000..9001],
            6000,
            |index| sum(world_size, index),
        );
        assert_bits(&buffer.as_slice::<f32>().unwrap()[9001..], 9001, |index| {
            value(rank, index)
        });
    }
}

/// Buckets are reduced on a thread of their own while this one still writes the next.
pub(crate) fn buckets_sent_to_a_thread(group: &mut dyn ProcessGroup) {
    let (rank, world_size) = (group.rank(), group.world_size());
    let buckets: Vec<_> = (0..6)
        .map(|_| group.allocate(DType::F64, 5000).unwrap())
        .collect();
    let (give, taken) = mpsc::channel::<Buffer>();
    let (return_reduced, reduced) = mpsc::channel::<Buffer>();
    thread::scope(|scope| {
        scope.spawn(move || {
            for mut bucket in taken {
                let len = bucket.len();
                group.all_reduce(&mut bucket, 0..len).unwrap();
                return_reduced.send(bucket).unwrap();
            }
        });
        for (number, mut bucket) in buckets.into_iter().enumerate() {
            for (index, element) in bucket.as_mut_slice::<f64>().unwrap().iter_mut().enumerate() {
                *element = value(rank, number * 5000 + index);
            }
            give.send(bucket).unwrap();
        }
        drop(give);
        for (number, bucket) in reduced.iter().enumerate() {
            assert_bits(bucket.as_slice::<f64>().unwrap(), 0, |index| {
                sum(world_size, number * 5000 + index)
            });
        }
    });
}
