//! A process group for the ranks of one machine, over memory that they all map.
//!
//! Buffers of the group lie in that memory, each rank's copy beside the others', and collectives
//! work on them in place: the owner of a shard reads the shard of every rank, adds in the order of
//! ranks, and writes the sum into every copy. Other buffers go through a scratch area in pieces,
//! with the same bits. Nothing passes through the kernel but sleeping and waking.
//!
//! Two rules keep the accesses apart. Between two meetings of all ranks every byte is written by
//! at most one rank and then read by no other. And a rank's copy of a buffer is touched by others
//! only while that rank is inside a call that was lent the buffer as `&mut`.

mod collectives;
mod control;
mod journal;
mod meeting;
mod sum;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use cordee_memory::{Buffer, DType, MemoryError, SharedMapping, SharedMemory};

use crate::{
    Call, CommError, HostGroup, Operation, Place, ProcessGroup, Records, Result, Witness,
    shard_range,
};
use control::Control;
use journal::Journal;
pub(crate) use meeting::Meeting;
pub(crate) use sum::sum_in_rank_order;

/// Bytes per rank through which private buffers pass; twice that, since two halves take turns.
/// Small enough that the pieces of all ranks stay in the cache that cores share.
pub(crate) const SCRATCH_BYTES: usize = 256 * 1024;

/// The ranks of one machine, or a world of one.
#[derive(Debug)]
pub struct SharedMemoryGroup {
    seat: Seat,
    sequence: u64,
    seconds: f64,
    timeout: Duration,
    broken: Option<String>,
    /// The first call that was begun by other means and may not be done.
    elsewhere: Option<u64>,
    witness: Option<Arc<dyn Witness>>,
    /// Absent in a world of one.
    peers: Option<Peers>,
}

/// Which of the ranks of a machine one is, and which of the whole world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    /// Among the ranks that share the memory, from 0.
    pub(crate) local_rank: usize,
    /// How many they are.
    pub(crate) local_size: usize,
    /// The rank of the first of them.
    pub(crate) first_rank: usize,
    /// All ranks.
    pub(crate) world_size: usize,
}

impl Seat {
    /// Of a machine that has all ranks.
    fn on_one_machine(rank: usize, world_size: usize) -> Self {
        Self {
            local_rank: rank,
            local_size: world_size,
            first_rank: 0,
            world_size,
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.first_rank + self.local_rank
    }
}

/// What a rank shares with its peers on the same machine. Ranks are numbered within the machine here,
/// and within the world in errors.
#[derive(Debug)]
pub(crate) struct Peers {
    memory: SharedMemory,
    pub(crate) meeting: Meeting,
    scratch: Arc<SharedMapping>,
    allocations: Vec<Allocation>,
    /// Where the next allocation begins in the shared memory, in bytes.
    end: usize,
}

/// Memory of one [`ProcessGroup::allocate`]: the copies of all ranks, one after the other.
#[derive(Debug)]
struct Allocation {
    mapping: Arc<SharedMapping>,
    /// Bytes from one rank's copy to the next, a multiple of the page size.
    stride: usize,
}

impl SharedMemoryGroup {
    /// A world of one: every call returns at once, and buffers lie on the heap.
    pub fn solo() -> Self {
        Self {
            seat: Seat::on_one_machine(0, 1),
            sequence: 0,
            seconds: 0.0,
            timeout: Duration::MAX,
            broken: None,
            elsewhere: None,
            witness: None,
            peers: None,
        }
    }

    /// Joins the group that meets in `memory`, which every rank has inherited from who started
    /// them. Returns when all `world_size` ranks are there, or after `timeout`, which is also how
    /// long every later call waits for other ranks. A group's memory serves it alone, once.
    pub fn join(
        memory: SharedMemory,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Self> {
        if rank >= world_size {
            return Err(CommError::NoSuchRank { rank, world_size });
        }
        let mut group = Self::take_seat(memory, Seat::on_one_machine(rank, world_size), timeout)?;
        if world_size == 1 {
            group.peers = None;
        }
        Ok(group)
    }

    /// The same, of a machine that may not be the only one: with the ranks that share the memory.
    pub(crate) fn take_seat(memory: SharedMemory, seat: Seat, timeout: Duration) -> Result<Self> {
        let started = Instant::now();
        let (rank, local_size) = (seat.rank(), seat.local_size);
        let call = Call {
            sequence: 0,
            operation: Operation::Join,
            place: None,
            root: None,
        };
        let no_memory = |source| CommError::Memory {
            rank,
            call: Box::new(call.clone()),
            source,
        };
        let control_bytes = Control::bytes(local_size).next_multiple_of(page_size());
        let scratch_bytes = 2 * SCRATCH_BYTES * local_size;
        let mapping = memory.map(0, control_bytes).map_err(no_memory)?;
        let control = Control::claim(mapping, &seat)?;
        let scratch = memory
            .map(control_bytes, scratch_bytes)
            .map_err(no_memory)?;
        let mut meeting = Meeting::new(control, seat, timeout);
        meeting
            .meet(&call, 0)
            .inspect_err(|error| meeting.fail(&error.to_string()))?;
        let end = control_bytes + scratch_bytes;
        let peers = Peers {
            memory,
            meeting,
            scratch,
            allocations: Vec::new(),
            end,
        };
        Ok(Self {
            seat,
            sequence: 0,
            seconds: started.elapsed().as_secs_f64(),
            timeout,
            broken: None,
            elsewhere: None,
            witness: None,
            peers: Some(peers),
        })
    }

    /// What it shares, of a group that was made by [`Self::take_seat`].
    pub(crate) fn peers(&mut self) -> &mut Peers {
        self.peers
            .as_mut()
            .expect("a seat has peers, if only itself")
    }

    /// Who it is.
    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// The same group, whose calls from here on `witness` hears of.
    #[must_use]
    pub fn witnessed_by(mut self, witness: Arc<dyn Witness>) -> Self {
        self.hear(witness);
        self
    }

    pub(crate) fn hear(&mut self, witness: Arc<dyn Witness>) {
        self.witness = Some(witness);
    }

    /// Runs one call: numbers it, times it, and tells the peers when it fails.
    pub(crate) fn run<R>(
        &mut self,
        operation: Operation,
        place: Option<Place>,
        root: Option<usize>,
        work: impl FnOnce(&mut Self, &Call) -> Result<R>,
    ) -> Result<R> {
        let call = self.note(operation, place, root)?;
        let started = Instant::now();
        let result = work(self, &call);
        self.seconds += started.elapsed().as_secs_f64();
        match &result {
            Ok(_) => self.note_completed(),
            Err(error) => self.fail(&error.to_string()),
        }
        result
    }

    /// Numbers a call, and notes it for the peers to read.
    fn note(
        &mut self,
        operation: Operation,
        place: Option<Place>,
        root: Option<usize>,
    ) -> Result<Call> {
        self.sequence += 1;
        let call = Call {
            sequence: self.sequence,
            operation,
            place,
            root,
        };
        if let Some(reason) = &self.broken {
            return Err(CommError::Broken {
                rank: self.seat.rank(),
                call: Box::new(call),
                reason: reason.clone(),
            });
        }
        if let Some(peers) = &self.peers {
            peers.journal().begin(&call);
        }
        if let Some(witness) = &self.witness {
            witness.begun(&call);
        }
        Ok(call)
    }

    /// Notes how far this rank's calls are done.
    fn note_completed(&self) {
        let completed = self.elsewhere.map_or(self.sequence, |first| first - 1);
        if let Some(peers) = &self.peers {
            peers.journal().complete(completed);
        }
        if let Some(witness) = &self.witness {
            witness.completed(completed);
        }
    }

    /// Runs one call on a part of a buffer, if there is such a part.
    pub(crate) fn run_on<R>(
        &mut self,
        operation: Operation,
        buffer: &mut Buffer,
        range: Range<usize>,
        root: Option<usize>,
        work: impl FnOnce(&mut Self, &Call, &mut Buffer) -> Result<R>,
    ) -> Result<R> {
        let allocation = self
            .peers
            .as_ref()
            .and_then(|peers| peers.allocation_of(buffer));
        let place = Place {
            dtype: buffer.dtype(),
            range: range.clone(),
            allocation,
            on_device: buffer.is_on_device(),
        };
        self.run(operation, Some(place), root, |group, call| {
            let (rank, world_size) = (group.seat.rank(), group.seat.world_size);
            if range.start > range.end || range.end > buffer.len() {
                return Err(CommError::OutOfRange {
                    rank,
                    call: Box::new(call.clone()),
                    range,
                    len: buffer.len(),
                });
            }
            if root.is_some_and(|root| root >= world_size) {
                return Err(CommError::NoSuchRoot {
                    rank,
                    call: Box::new(call.clone()),
                    world_size,
                });
            }
            // Of a rank that is alone nobody reaches the buffer, which may be a device's.
            if group.peers.is_some() {
                buffer.pointer().map_err(|source| CommError::Memory {
                    rank,
                    call: Box::new(call.clone()),
                    source,
                })?;
            }
            work(group, call, buffer)
        })
    }
}

impl ProcessGroup for SharedMemoryGroup {
    fn rank(&self) -> usize {
        self.seat.rank()
    }

    fn world_size(&self) -> usize {
        self.seat.world_size
    }

    fn allocate(&mut self, dtype: DType, len: usize) -> Result<Buffer> {
        let place = Place {
            dtype,
            range: 0..len,
            allocation: None,
            on_device: false,
        };
        self.run(Operation::Allocate, Some(place), None, |group, call| {
            let rank = group.seat.rank();
            let no_memory = |source| CommError::Memory {
                rank,
                call: Box::new(call.clone()),
                source,
            };
            match &mut group.peers {
                None => Buffer::zeroed(dtype, len).map_err(no_memory),
                Some(peers) => {
                    peers.meeting.meet(call, 0)?;
                    peers.allocate(dtype, len).map_err(no_memory)
                }
            }
        })
    }

    fn all_reduce(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()> {
        self.run_on(
            Operation::AllReduce,
            buffer,
            range,
            None,
            |group, call, buffer| match &mut group.peers {
                None => Ok(()),
                Some(peers) => peers.reduce(call, buffer),
            },
        )
    }

    fn reduce_scatter(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<Range<usize>> {
        self.run_on(
            Operation::ReduceScatter,
            buffer,
            range.clone(),
            None,
            |group, call, buffer| match &mut group.peers {
                None => Ok(()),
                Some(peers) => peers.reduce(call, buffer),
            },
        )?;
        Ok(shard_range(range, self.world_size(), self.rank()))
    }

    fn all_gather(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()> {
        self.run_on(
            Operation::AllGather,
            buffer,
            range,
            None,
            |group, call, buffer| match &mut group.peers {
                None => Ok(()),
                Some(peers) => peers.all_gather(call, buffer),
            },
        )
    }

    fn broadcast(&mut self, buffer: &mut Buffer, range: Range<usize>, root: usize) -> Result<()> {
        self.run_on(
            Operation::Broadcast,
            buffer,
            range,
            Some(root),
            |group, call, buffer| match &mut group.peers {
                None => Ok(()),
                Some(peers) => peers.broadcast(call, buffer, root),
            },
        )
    }

    fn barrier(&mut self) -> Result<()> {
        self.run(
            Operation::Barrier,
            None,
            None,
            |group, call| match &mut group.peers {
                None => Ok(()),
                Some(peers) => peers.meeting.meet(call, 0),
            },
        )
    }

    fn sum_scalars(&mut self, values: &mut [f64]) -> Result<()> {
        let place = Place {
            dtype: DType::F64,
            range: 0..values.len(),
            allocation: None,
            on_device: false,
        };
        self.run(
            Operation::SumScalars,
            Some(place),
            None,
            |group, call| match &mut group.peers {
                None => Ok(()),
                Some(peers) => peers.sum_scalars(call, values),
            },
        )
    }

    fn gather_bytes(&mut self, value: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.run(
            Operation::GatherBytes,
            None,
            None,
            |group, call| match &mut group.peers {
                None => Ok(vec![value.to_vec()]),
                Some(peers) => peers.gather_bytes(call, value),
            },
        )
    }

    fn fail(&mut self, reason: &str) {
        if self.broken.is_none() {
            self.broken = Some(reason.to_owned());
            if let Some(peers) = &self.peers {
                peers.meeting.fail(reason);
            }
        }
    }

    fn seconds(&self) -> f64 {
        self.seconds
    }
}

impl HostGroup for SharedMemoryGroup {
    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn begin(
        &mut self,
        operation: Operation,
        place: Option<Place>,
        root: Option<usize>,
    ) -> Result<Call> {
        let call = self.note(operation, place, root)?;
        self.elsewhere.get_or_insert(call.sequence);
        Ok(call)
    }

    fn completed(&mut self) {
        self.elsewhere = None;
        self.note_completed();
    }

    fn compare(&self) -> Result<()> {
        match &self.peers {
            None => Ok(()),
            Some(peers) => journal::compare(peers.meeting.control(), &self.seat),
        }
    }

    fn check(&self, call: &Call) -> Result<()> {
        let Some(peers) = &self.peers else {
            return Ok(());
        };
        peers.meeting.check(call)?;
        self.compare()
    }

    fn records(&self) -> Records {
        self.peers
            .as_ref()
            .map_or_else(Records::default, |peers| peers.meeting.records())
    }
}

impl Drop for SharedMemoryGroup {
    fn drop(&mut self) {
        // Who waits for this rank from now on waits in vain, so it is told at once. A rank that
        // has met all others in its last call has nobody waiting.
        self.fail(if std::thread::panicking() {
            "it panicked"
        } else {
            "it left the group"
        });
    }
}

impl Peers {
    /// This rank's.
    fn journal(&self) -> &Journal {
        &self
            .meeting
            .control()
            .page(self.meeting.local_rank())
            .journal
    }

    /// Maps the copies of all ranks, and makes a buffer of this rank's own.
    pub(crate) fn allocate(
        &mut self,
        dtype: DType,
        len: usize,
    ) -> std::result::Result<Buffer, MemoryError> {
        let too_large = || MemoryError::TooLarge {
            what: format!("shared buffer of {len} {dtype}"),
        };
        let local_size = self.meeting.local_size();
        let stride = len
            .max(1)
            .checked_mul(dtype.size_in_bytes())
            .and_then(|bytes| bytes.checked_next_multiple_of(page_size()))
            .ok_or_else(too_large)?;
        let bytes = stride.checked_mul(local_size).ok_or_else(too_large)?;
        let mapping = self.memory.map(self.end, bytes)?;
        // SAFETY: this part of the shared memory is given out once, since `end` moves on, and the
        // mapping is new. Other ranks touch this rank's copy only in collectives that were lent
        // the buffer as `&mut`; one that ends with an error detaches the buffer from the others.
        let buffer =
            unsafe { Buffer::in_shared(&mapping, self.meeting.local_rank() * stride, dtype, len) }?;
        self.end += bytes;
        self.allocations.push(Allocation { mapping, stride });
        Ok(buffer)
    }

    /// Which allocation of this group the buffer is. By address: a buffer of another group may lie
    /// at the same offset of another memory.
    fn allocation_of(&self, buffer: &Buffer) -> Option<usize> {
        self.allocations.iter().position(|allocation| {
            let own = allocation.copy(self.meeting.local_rank());
            buffer.pointer().is_ok_and(|start| start.as_ptr() == own)
        })
    }
}

impl Allocation {
    /// First byte of a rank's copy.
    fn copy(&self, rank: usize) -> *mut u8 {
        self.mapping
            .pointer()
            .as_ptr()
            .wrapping_add(rank * self.stride)
    }
}

fn page_size() -> usize {
    rustix::param::page_size()
}
