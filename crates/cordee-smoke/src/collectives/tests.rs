//! Ranks as threads that meet in shared memory.

use std::thread;

use cordee_comm::SharedMemoryGroup;
use cordee_memory::SharedMemory;

use super::*;

/// Runs `body` on every rank at once; what rank 0 gave.
fn ranks<R: Send>(world_size: usize, body: impl Fn(&mut SharedMemoryGroup) -> R + Sync) -> R {
    let memory = SharedMemory::create("smoke-test").unwrap();
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let (memory, body) = (memory.try_clone().unwrap(), &body);
                let patience = Duration::from_mins(1);
                scope.spawn(move || {
                    let group = SharedMemoryGroup::join(memory, rank, world_size, patience);
                    body(&mut group.unwrap())
                })
            })
            .collect();
        let told: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        told.into_iter().next().unwrap()
    })
}

fn measured(world_size: usize, dtype: DType, memory: Memory) -> Vec<CollectiveReport> {
    ranks(world_size, |group| {
        let asked = Collectives {
            operations: &Collective::ALL,
            // One is shorter than a shard, one does not end at one, one passes the pattern's end.
            sizes: &[1, 100, 4_000, 200_000],
            dtype,
            device: &Device::HOST,
            memory,
            budget: Duration::from_millis(2),
        };
        let mut reports = Vec::new();
        measure_collectives(group, &asked, &mut |report| reports.push(report)).unwrap();
        reports
    })
}

#[test]
fn every_operation_of_every_size_is_right() {
    for (world_size, dtype, memory) in [
        (1, DType::F32, Memory::Training),
        (2, DType::F32, Memory::Training),
        (3, DType::Bf16, Memory::Private),
        (3, DType::F64, Memory::Training),
    ] {
        let reports = measured(world_size, dtype, memory);
        assert_eq!(reports.len(), 16);
        for report in reports {
            assert_eq!(report.wrong, 0, "{report:?}");
            assert_eq!(report.world, world_size);
            assert!((FEWEST_ROUNDS..=MOST_ROUNDS).contains(&report.rounds));
            assert!(
                0.0 < report.ms_min && report.ms_min <= report.ms,
                "{report:?}"
            );
            assert!(report.ms <= report.ms_p90, "{report:?}");
        }
    }
}

#[test]
fn sizes_are_whole_elements() {
    let reports = measured(2, DType::F64, Memory::Private);
    let sizes: Vec<_> = reports.iter().take(4).map(|report| report.bytes).collect();
    assert_eq!(sizes, [8, 96, 4_000, 200_000]);
}

/// A group that exchanges rightly but for one element of one rank.
struct Faulty(SharedMemoryGroup);

impl ProcessGroup for Faulty {
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn world_size(&self) -> usize {
        self.0.world_size()
    }
    fn allocate(&mut self, dtype: DType, len: usize) -> cordee_comm::Result<Buffer> {
        self.0.allocate(dtype, len)
    }
    fn all_reduce(
        &mut self,
        buffer: &mut Buffer,
        range: std::ops::Range<usize>,
    ) -> cordee_comm::Result<()> {
        self.0.all_reduce(buffer, range)?;
        if self.0.rank() == 1 {
            buffer.as_mut_slice::<f32>().unwrap()[17] += 1.0;
        }
        Ok(())
    }
    fn reduce_scatter(
        &mut self,
        buffer: &mut Buffer,
        range: std::ops::Range<usize>,
    ) -> cordee_comm::Result<std::ops::Range<usize>> {
        self.0.reduce_scatter(buffer, range)
    }
    fn all_gather(
        &mut self,
        buffer: &mut Buffer,
        range: std::ops::Range<usize>,
    ) -> cordee_comm::Result<()> {
        self.0.all_gather(buffer, range)
    }
    fn broadcast(
        &mut self,
        buffer: &mut Buffer,
        range: std::ops::Range<usize>,
        root: usize,
    ) -> cordee_comm::Result<()> {
        self.0.broadcast(buffer, range, root)
    }
    fn barrier(&mut self) -> cordee_comm::Result<()> {
        self.0.barrier()
    }
    fn sum_scalars(&mut self, values: &mut [f64]) -> cordee_comm::Result<()> {
        self.0.sum_scalars(values)
    }
    fn gather_bytes(&mut self, value: &[u8]) -> cordee_comm::Result<Vec<Vec<u8>>> {
        self.0.gather_bytes(value)
    }
    fn fail(&mut self, reason: &str) {
        self.0.fail(reason);
    }
    fn seconds(&self) -> f64 {
        self.0.seconds()
    }
}

#[test]
fn a_wrong_element_is_counted() {
    let memory = SharedMemory::create("smoke-test").unwrap();
    let wrong: Vec<u64> = thread::scope(|scope| {
        let ranks: Vec<_> = (0..2)
            .map(|rank| {
                let memory = memory.try_clone().unwrap();
                scope.spawn(move || {
                    let patience = Duration::from_mins(1);
                    let group = SharedMemoryGroup::join(memory, rank, 2, patience).unwrap();
                    let asked = Collectives {
                        operations: &[Collective::AllReduce, Collective::AllGather],
                        sizes: &[4_096],
                        dtype: DType::F32,
                        device: &Device::HOST,
                        memory: Memory::Private,
                        budget: Duration::from_millis(1),
                    };
                    let mut wrong = Vec::new();
                    measure_collectives(&mut Faulty(group), &asked, &mut |report| {
                        wrong.push(report.wrong);
                    })
                    .unwrap();
                    wrong
                })
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().unwrap())
            .next_back()
            .unwrap()
    });
    // One element, before and after the rounds that count.
    assert_eq!(wrong, [2, 0]);
}
