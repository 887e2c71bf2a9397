//! Ranks as threads that meet in shared memory: the suite, and a world of one without any.

use std::{thread, time::Duration};

use cordee_comm::{
    ProcessGroup, Result, SharedMemoryGroup,
    conformance::{Setting, cases},
};
use cordee_memory::{Buffer, DType, SharedMemory};

/// Long enough for a loaded machine; only a bug waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Runs `body` on every rank at once and returns what each gave, by rank.
pub(crate) fn threads<R: Send>(
    world_size: usize,
    timeout: Duration,
    body: impl Fn(usize, Result<SharedMemoryGroup>) -> R + Sync,
) -> Vec<R> {
    let memory = SharedMemory::create("comm-test").unwrap();
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let memory = memory.try_clone().unwrap();
                let body = &body;
                scope.spawn(move || {
                    body(
                        rank,
                        SharedMemoryGroup::join(memory, rank, world_size, timeout),
                    )
                })
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("no rank panics"))
            .collect()
    })
}

fn run(world_size: usize) {
    for case in cases() {
        println!("{case:?}, {world_size} ranks");
        threads(world_size, PATIENCE, |_, group| {
            let wrong = case.run(&mut group.unwrap(), &Setting::HOST).unwrap();
            assert_eq!(wrong, None, "{case:?}");
        });
    }
}

#[test]
fn solo() {
    for case in cases() {
        let wrong = case.run(&mut SharedMemoryGroup::solo(), &Setting::HOST);
        assert_eq!(wrong.unwrap(), None, "{case:?}");
    }
}

#[test]
fn one_rank() {
    run(1);
}

#[test]
fn two_ranks() {
    run(2);
}

#[test]
fn three_ranks() {
    run(3);
}

#[test]
fn four_ranks() {
    run(4);
}

#[test]
fn eight_ranks() {
    run(8);
}

/// A buffer of another group lies at the same place of another memory: it is private to this one.
#[test]
fn a_buffer_of_another_group_is_private() {
    let other = SharedMemory::create("comm-test-other").unwrap();
    let sums = threads(2, PATIENCE, |rank, group| {
        let mut group = group.unwrap();
        let mut other =
            SharedMemoryGroup::join(other.try_clone().unwrap(), rank, 2, PATIENCE).unwrap();
        let (mut own, mut foreign): (Buffer, Buffer) = (
            group.allocate(DType::F32, 100).unwrap(),
            other.allocate(DType::F32, 100).unwrap(),
        );
        assert_eq!(own.shared_offset(), foreign.shared_offset());
        own.as_mut_slice::<f32>().unwrap().fill(1.0);
        foreign.as_mut_slice::<f32>().unwrap().fill(10.0);
        group.all_reduce(&mut foreign, 0..100).unwrap();
        group.all_reduce(&mut own, 0..100).unwrap();
        [
            own.as_slice::<f32>().unwrap()[99],
            foreign.as_slice::<f32>().unwrap()[99],
        ]
    });
    assert_eq!(sums, [[2.0, 20.0], [2.0, 20.0]]);
}
