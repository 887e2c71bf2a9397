//! How fast ranks exchange memory, and whether what arrives is right.

mod pattern;

use std::time::{Duration, Instant};

use cordee_comm::{ProcessGroup, shard_range};
use cordee_memory::{Buffer, DType};
use cordee_ops::Device;
use cordee_protocol::{Collective, CollectiveReport};

use self::pattern::Pattern;
use crate::Result;

/// Rounds before those that count: caches, page tables and the pace of the others settle.
const WARM_UP: usize = 3;

/// Fewer rounds have no middle worth telling.
const FEWEST_ROUNDS: usize = 5;

/// More rounds tell nothing new.
const MOST_ROUNDS: usize = 1000;

/// Which memory ranks exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// What gradients lie in: memory that a group of the host shares between ranks, or a device's.
    Training,
    /// The heap of each process.
    Private,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Collectives<'a> {
    /// In this order, each over all sizes.
    pub operations: &'a [Collective],
    /// Bytes of the whole range, on each rank, in this order. Rounded down to whole elements, of which
    /// there is at least one.
    pub sizes: &'a [usize],
    /// Type of the elements.
    pub dtype: DType,
    /// Where ranks compute, which says where [`Memory::Training`] is.
    pub device: &'a Device,
    /// Which memory.
    pub memory: Memory,
    /// About how long the rounds that count take in all, for each operation and size: there are 5 at
    /// the least and 1000 at the most.
    pub budget: Duration,
}

/// Measures every operation with every size, and reports each as soon as it is known, on every rank.
/// All ranks call it with the same.
///
/// A round is one collective between a barrier and its end on the last rank; the time is the median
/// of the rounds, and of a round what the slowest rank took. Only the collective is timed. Before
/// and after the rounds that count, the range is filled with numbers whose sums are exact, and every
/// element that an operation defines is compared: differing ones, over all ranks, are the report's
/// `wrong`. Bandwidths are those of nccl-tests.
///
/// # Errors
///
/// [`SmokeError::Comm`](crate::SmokeError::Comm) where ranks fail each other, which ends the group;
/// [`Memory`](crate::SmokeError::Memory) and [`Op`](crate::SmokeError::Op) where memory for the
/// largest size cannot be had.
pub fn measure_collectives(
    group: &mut dyn ProcessGroup,
    asked: &Collectives<'_>,
    report: &mut dyn FnMut(CollectiveReport),
) -> Result<()> {
    let elements = |bytes: &usize| (bytes / asked.dtype.size_in_bytes()).max(1);
    let Some(most) = asked.sizes.iter().map(elements).max() else {
        return Ok(());
    };
    let on_device = asked.device.facts().is_some();
    let buffer = match asked.memory {
        Memory::Private => Buffer::zeroed(asked.dtype, most)?,
        Memory::Training if on_device => asked.device.zeroed(asked.dtype, most)?,
        Memory::Training => group.allocate(asked.dtype, most)?,
    };
    let staged = if buffer.is_on_device() {
        Some(Buffer::zeroed(asked.dtype, most)?)
    } else {
        None
    };
    let mut bench = Bench {
        pattern: Pattern::new(asked.dtype, group.world_size()),
        staged,
        buffer,
        budget: asked.budget,
    };
    for operation in asked.operations {
        for len in asked.sizes.iter().map(elements) {
            report(bench.measure(group, *operation, len)?);
        }
    }
    Ok(())
}

/// The memory that is exchanged and what is put in it.
struct Bench {
    buffer: Buffer,
    /// On a device: the host's side of filling and comparing.
    staged: Option<Buffer>,
    pattern: Pattern,
    budget: Duration,
}

impl Bench {
    fn measure(
        &mut self,
        group: &mut dyn ProcessGroup,
        operation: Collective,
        len: usize,
    ) -> Result<CollectiveReport> {
        let mut wrong = self.check(group, operation, len, 0)?;
        let mut warm_up = Vec::with_capacity(WARM_UP);
        for _ in 0..WARM_UP {
            warm_up.push(self.round(group, operation, len, 0)?);
        }
        // Of numbers that all ranks have, so that all do as many.
        let pace = median(slowest(group, &warm_up)?);
        let fitting = (self.budget.as_secs_f64() / pace.max(1e-9)) as usize;
        let rounds = fitting.clamp(FEWEST_ROUNDS, MOST_ROUNDS);
        let mut seconds = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            seconds.push(self.round(group, operation, len, 0)?);
        }
        let mut seconds = slowest(group, &seconds)?;
        let last = group.world_size() - 1;
        wrong += self.check(group, operation, len, last)?;
        let mut wrong = [wrong as f64];
        group.sum_scalars(&mut wrong)?;
        seconds.sort_by(f64::total_cmp);
        Ok(CollectiveReport::new(
            operation,
            (len * self.buffer.dtype().size_in_bytes()) as u64,
            group.world_size(),
            &seconds,
            wrong[0] as u64,
        ))
    }

    /// Seconds of one collective. What it leaves in the buffer is of no use.
    fn round(
        &mut self,
        group: &mut dyn ProcessGroup,
        operation: Collective,
        len: usize,
        root: usize,
    ) -> Result<f64> {
        group.barrier()?;
        let started = Instant::now();
        match operation {
            Collective::AllReduce => group.all_reduce(&mut self.buffer, 0..len)?,
            Collective::ReduceScatter => {
                group.reduce_scatter(&mut self.buffer, 0..len)?;
            }
            Collective::AllGather => group.all_gather(&mut self.buffer, 0..len)?,
            Collective::Broadcast => group.broadcast(&mut self.buffer, 0..len, root)?,
        }
        if self.buffer.is_on_device() {
            group.wait()?;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// One collective on known numbers: how many of this rank's elements it got wrong.
    fn check(
        &mut self,
        group: &mut dyn ProcessGroup,
        operation: Collective,
        len: usize,
        root: usize,
    ) -> Result<usize> {
        let (rank, world_size) = (group.rank(), group.world_size());
        let host = self.staged.as_mut().unwrap_or(&mut self.buffer);
        self.pattern.fill(host, 0..len, rank)?;
        if let Some(staged) = &self.staged {
            self.buffer.copy_from_host(staged)?;
        }
        self.round(group, operation, len, root)?;
        if let Some(staged) = &mut self.staged {
            self.buffer.copy_to_host(staged)?;
        }
        let host = self.staged.as_ref().unwrap_or(&self.buffer);
        let own = shard_range(0..len, world_size, rank);
        Ok(match operation {
            Collective::AllReduce => self.pattern.count_other_than_sum(host, 0..len)?,
            Collective::ReduceScatter => self.pattern.count_other_than_sum(host, own)?,
            Collective::Broadcast => self.pattern.count_other_than(host, 0..len, root)?,
            Collective::AllGather => {
                let mut wrong = 0;
                for rank in 0..world_size {
                    let shard = shard_range(0..len, world_size, rank);
                    wrong += self.pattern.count_other_than(host, shard, rank)?;
                }
                wrong
            }
        })
    }
}

/// Of each round, what its slowest rank took.
fn slowest(group: &mut dyn ProcessGroup, seconds: &[f64]) -> Result<Vec<f64>> {
    let bytes: Vec<u8> = seconds.iter().flat_map(|it| it.to_le_bytes()).collect();
    let mut most = vec![0.0_f64; seconds.len()];
    for rank in group.gather_bytes(&bytes)? {
        for (most, bytes) in most.iter_mut().zip(rank.as_chunks::<8>().0) {
            *most = most.max(f64::from_le_bytes(*bytes));
        }
    }
    Ok(most)
}

/// Of at least one number.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[cfg(test)]
mod tests;
