//! Ranks as threads, with a GPU each: every case.

use std::{thread, time::Duration};

use cordee_comm::{
    CommError, NcclGroup, ProcessGroup, Result, SharedMemoryGroup,
    conformance::{Setting, cases},
};
use cordee_memory::{DType, SharedMemory};
use nccl_sys::Library;

use crate::{PATIENCE, driver::Gpu, equipment};

/// A rank's group, and the GPU of its buffers.
pub(crate) fn join(
    library: Library,
    memory: SharedMemory,
    (rank, world_size): (usize, usize),
    ordinal: usize,
    timeout: Duration,
) -> Result<(NcclGroup, Gpu)> {
    let host = SharedMemoryGroup::join(memory, rank, world_size, timeout)?;
    let gpu = Gpu::open(ordinal);
    let group = NcclGroup::new("test", Box::new(host), gpu.queue(), library)?;
    Ok((group, gpu))
}

/// Runs `body` on every rank at once and returns what each gave, by rank.
pub(crate) fn threads<R: Send>(
    library: Library,
    world_size: usize,
    timeout: Duration,
    body: impl Fn(NcclGroup, &Gpu) -> R + Sync,
) -> Vec<R> {
    let memory = SharedMemory::create("nccl-test").unwrap();
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let (memory, body) = (memory.try_clone().unwrap(), &body);
                scope.spawn(move || {
                    let (group, gpu) =
                        join(library, memory, (rank, world_size), rank, timeout).unwrap();
                    body(group, &gpu)
                })
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("no rank panics"))
            .collect()
    })
}

#[test]
fn every_case_in_every_world() {
    let Some((library, gpus)) = equipment() else {
        return;
    };
    for world_size in 1..=gpus.min(4) {
        threads(library, world_size, PATIENCE, |mut group, gpu| {
            let make = |dtype, len| gpu.zeroed(dtype, len);
            let setting = Setting {
                make: &make,
                in_rank_order: false,
            };
            for case in cases() {
                let wrong = case.run(&mut group, &setting).unwrap();
                assert_eq!(wrong, None, "{case:?} with {world_size} ranks");
            }
            // Buffers of the host go to the group below.
            for case in cases() {
                let wrong = case.run(&mut group, &Setting::HOST).unwrap();
                assert_eq!(wrong, None, "{case:?} with {world_size} ranks, on the host");
            }
            group.finish().unwrap();
        });
    }
}

#[test]
fn a_group_that_is_finished_takes_no_calls() {
    let Some((library, _)) = equipment() else {
        return;
    };
    let errors = threads(library, 2, PATIENCE, |mut group, gpu| {
        let mut buffer = gpu.zeroed(DType::F32, 100).unwrap();
        group.all_reduce(&mut buffer, 0..100).unwrap();
        group.finish().unwrap();
        group.finish().unwrap();
        group.barrier().unwrap();
        group.all_reduce(&mut buffer, 0..100).unwrap_err()
    });
    let finished = |error: &CommError| matches!(error, CommError::Broken { reason, .. } if reason == "it was finished");
    // The first to try tells the other.
    assert!(errors.iter().any(finished), "{errors:?}");
}
