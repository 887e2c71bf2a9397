//! Who may join a group, and who is sent away.

use std::{
    fs::File,
    io::Write,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use cordee_comm::{CommError, Operation, ProcessGroup, SharedMemoryGroup};
use cordee_memory::SharedMemory;

use crate::threads::PATIENCE;

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn memory_of_something_else_is_refused() {
    let memory = SharedMemory::create("comm-test").unwrap();
    let mut file = File::from(OwnedFd::from(memory.try_clone().unwrap()));
    file.write_all(b"something else, and long enough").unwrap();
    let error = SharedMemoryGroup::join(memory, 0, 2, PATIENCE).unwrap_err();
    assert!(
        matches!(error, CommError::Foreign { rank: 0, .. }),
        "{error:?}"
    );
    let begins = format!(
        "begins with {:#018x} where",
        u64::from_ne_bytes(*b"somethin")
    );
    assert!(error.to_string().contains(&begins), "{error}");
}

#[test]
fn memory_of_another_attempt_is_refused() {
    let memory = SharedMemory::create("comm-test").unwrap();
    let first = thread::scope(|scope| {
        let join = |rank| {
            let memory = memory.try_clone().unwrap();
            scope.spawn(move || SharedMemoryGroup::join(memory, rank, 2, PATIENCE).unwrap())
        };
        let ranks = [join(0), join(1)];
        ranks.map(|rank| rank.join().unwrap())
    });
    drop(first);
    let error = SharedMemoryGroup::join(memory, 1, 2, PATIENCE).unwrap_err();
    let CommError::RankTaken { rank: 1, process } = error else {
        panic!("{error:?}")
    };
    assert_eq!(process, std::process::id());
}

#[test]
fn another_world_size_is_refused() {
    let memory = SharedMemory::create("comm-test").unwrap();
    let other = memory.try_clone().unwrap();
    let error = SharedMemoryGroup::join(memory, 0, 2, SHORT).unwrap_err();
    assert!(matches!(error, CommError::Timeout { .. }), "{error:?}");
    let error = SharedMemoryGroup::join(other, 1, 3, SHORT).unwrap_err();
    assert!(
        matches!(
            error,
            CommError::WorldSize {
                rank: 1,
                expected: 3,
                found: 2
            }
        ),
        "{error:?}"
    );
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let memory = SharedMemory::create("comm-test").unwrap();
    let started = Instant::now();
    let error = SharedMemoryGroup::join(memory, 1, 4, SHORT).unwrap_err();
    assert!(started.elapsed() >= SHORT);
    let CommError::Timeout {
        rank: 1,
        call,
        missing,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(
        (call.operation, &missing[..]),
        (Operation::Join, &[0, 2, 3][..])
    );
    assert!(
        error
            .to_string()
            .contains("in join #0 for ranks 0, 2, 3: look"),
        "{error}"
    );
}

#[test]
fn a_rank_outside_the_world_is_refused() {
    let memory = SharedMemory::create("comm-test").unwrap();
    let error = SharedMemoryGroup::join(memory, 2, 2, PATIENCE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "rank 2 cannot join a group of 2 ranks: expected 0 to 1"
    );
}

#[test]
fn a_world_of_one_needs_nobody() {
    let memory = SharedMemory::create("comm-test").unwrap();
    let mut group = SharedMemoryGroup::join(memory, 0, 1, SHORT).unwrap();
    group.barrier().unwrap();
    assert_eq!((group.rank(), group.world_size()), (0, 1));
}
