//! A process group for ranks on several machines, over TCP between them.
//!
//! On each machine ranks share memory, as in a [`SharedMemoryGroup`]. Machines make a chain in the order
//! of their ranks, and every rank of a machine holds one end of a connection to the rank of the same
//! number on the next one: a rail. A collective is dealt out over the rails. Sums are in the order of
//! ranks, with the bits that one machine would give: what the ranks of the first machine have is added
//! there, in order, the sum goes up to the second, which adds what its ranks have, and so on; from the
//! last machine the whole comes back down. Both go on at once, in pieces, so that each connection carries
//! every byte once in each direction, however many ranks a machine has.
//!
//! What arrives at a rank belongs to the call that it is in, or it is an error that says so: the calls of
//! neighbours are compared before any of their data is used. Connections are those of
//! [`cordee_protocol::Secret`]: nobody without the job's secret gets in, and no frame that was changed.
//!
//! For the host's memory, and for what ranks with GPUs have to tell each other; their data go over NCCL.

mod collectives;
mod frame;
mod greeting;
mod link;
mod rail;
mod topology;

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    ops::Range,
    sync::{Arc, mpsc::sync_channel},
    time::{Duration, Instant},
};

use cordee_memory::{Buffer, DType, SharedMemory};
use cordee_protocol::Secret;

use crate::{
    Call, CommError, HostGroup, Operation, Place, ProcessGroup, Records, Result, SharedMemoryGroup,
    Witness, shard_range,
    shared_memory::{Meeting, Peers, SCRATCH_BYTES, Seat},
};
use collectives::{Region, Wanted, root_of};
use frame::Pool;
use link::Last;
use rail::{Rail, Turn};
pub use topology::Machines;

/// Frames that may have come and not be looked at: what both neighbours may send without an answer, twice.
const ARRIVALS: usize = 8 * link::WINDOW;

/// How long a rank that has done its last call stays for neighbours that still take in what it sent.
const LEAVING: Duration = Duration::from_secs(5);

/// The neighbours of a machine in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// The one before.
    Below,
    /// The one after.
    Above,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Below, Self::Above];

    fn opposite(self) -> Self {
        match self {
            Self::Below => Self::Above,
            Self::Above => Self::Below,
        }
    }

    /// Whether a machine is on this side.
    fn has(self, machines: &Machines, machine: usize) -> bool {
        match self {
            Self::Below => machine < machines.own(),
            Self::Above => machine > machines.own(),
        }
    }
}

/// How a rank reaches those of the same number on neighbouring machines, and is reached.
#[derive(Debug)]
pub struct Neighbours {
    /// Where the rank on the machine after this one connects to; `None` on the last machine.
    pub listener: Option<TcpListener>,
    /// Addresses at which the rank on the machine before this one listens, tried in turn.
    pub below: Vec<SocketAddr>,
    /// What ranks of this group know and nobody else: another for every attempt at a run, so that what
    /// is left of an earlier one is a stranger.
    pub secret: Secret,
}

/// The ranks of several machines.
pub struct MachinesGroup {
    local: SharedMemoryGroup,
    machines: Machines,
    /// Absent on a rank that has no partner on some other machine.
    rail: Option<Rail>,
    /// Whether the neighbours know that this group has come to an end.
    told: bool,
}

impl fmt::Debug for MachinesGroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MachinesGroup")
            .field("machines", &self.machines)
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl MachinesGroup {
    /// Joins the group of all ranks of `machines`, as rank number `local_rank` of its own machine; those
    /// of this machine share `memory`. Returns when all ranks are there, or after `timeout`, which is
    /// also how long every later call waits for other ranks.
    pub fn join(
        memory: SharedMemory,
        local_rank: usize,
        machines: Machines,
        neighbours: &Neighbours,
        timeout: Duration,
    ) -> Result<Self> {
        let own = machines.ranks_of(machines.own());
        let seat = Seat {
            local_rank,
            local_size: own.len(),
            first_rank: own.start,
            world_size: machines.world_size(),
        };
        if local_rank >= own.len() {
            return Err(CommError::NoSuchRank {
                rank: seat.rank(),
                world_size: seat.world_size,
            });
        }
        let local = SharedMemoryGroup::take_seat(memory, seat, timeout)?;
        let mut group = Self {
            local,
            machines,
            rail: None,
            told: false,
        };
        let connected = group.connect(neighbours);
        group.tell(connected)?;
        group.barrier()?;
        Ok(group)
    }

    /// The same group, whose calls from here on `witness` hears of.
    #[must_use]
    pub fn witnessed_by(mut self, witness: Arc<dyn Witness>) -> Self {
        self.local.hear(witness);
        self
    }

    fn connect(&mut self, neighbours: &Neighbours) -> Result<()> {
        let Self {
            local,
            machines,
            rail,
            ..
        } = self;
        local.run(Operation::Join, None, None, |local, call| {
            let seat = *local.seat();
            if seat.local_rank >= machines.rails() {
                return Ok(());
            }
            let meeting = &local.peers().meeting;
            let mut turn = Turn::new(seat.rank(), meeting, call);
            let (arrived, arrivals) = sync_channel(ARRIVALS);
            let ends = (arrived, Pool::default());
            // There from the start: of two neighbours the one that is connected hears why the other is not.
            let rail = rail.insert(Rail::new(arrivals, ends.1.clone()));
            if machines.own() > 0 {
                rail.below = Some(greeting::dial(machines, neighbours, &mut turn, &ends)?);
            }
            if machines.own() + 1 < machines.count() {
                rail.above = Some(greeting::answer(machines, neighbours, &mut turn, &ends)?);
            }
            Ok(())
        })
    }

    /// Tells the neighbours of an error, unless they know.
    fn tell<R>(&mut self, result: Result<R>) -> Result<R> {
        if let Err(error) = &result {
            let (rank, reason) = root_of(error, self.rank());
            self.end_with(&Last::Failed {
                rank,
                reason: &reason,
            });
        }
        result
    }

    fn end_with(&mut self, last: &Last<'_>) {
        if !std::mem::replace(&mut self.told, true)
            && let Some(rail) = &mut self.rail
        {
            if matches!(last, Last::Left) {
                rail.settle(Instant::now() + LEAVING);
            }
            rail.end_with(last);
        }
    }

    /// A collective on a part of a buffer: in place where the ranks of this machine share it, and
    /// elsewhere piece by piece in memory that they share.
    fn on_buffer(
        &mut self,
        operation: Operation,
        buffer: &mut Buffer,
        range: Range<usize>,
        root: Option<usize>,
    ) -> Result<()> {
        let Self {
            local,
            machines,
            rail,
            ..
        } = self;
        let seat = *local.seat();
        let done = local.run_on(operation, buffer, range, root, |local, call, buffer| {
            let Some(place) = &call.place else {
                return Ok(());
            };
            let work = Work {
                seat,
                machines,
                call,
                dtype: place.dtype,
                range: place.range.clone(),
            };
            let peers = local.peers();
            match place.allocation {
                Some(index) => peers.in_place(index, |peers| work.in_place(peers, rail, index)),
                None => work.staged(peers, rail, buffer),
            }
        });
        self.tell(done)
    }

    /// What every rank gave, by rank.
    fn gather(
        &mut self,
        operation: Operation,
        place: Option<Place>,
        value: &[u8],
    ) -> Result<Vec<Vec<u8>>> {
        let Self {
            local,
            machines,
            rail,
            ..
        } = self;
        let gathered = local.run(operation, place, None, |local, call| {
            gather(local, machines, rail.as_mut(), call, value)
        });
        self.tell(gathered)
    }
}

/// Collects on each machine, then between the first ranks of machines, then on each machine again.
fn gather(
    local: &mut SharedMemoryGroup,
    machines: &Machines,
    rail: Option<&mut Rail>,
    call: &Call,
    value: &[u8],
) -> Result<Vec<Vec<u8>>> {
    let seat = *local.seat();
    let peers = local.peers();
    let here = peers.gather_bytes(call, value)?;
    let everywhere = match rail {
        Some(rail) if seat.local_rank == 0 => {
            let mut turn = Turn::new(seat.rank(), &peers.meeting, call);
            pack(&rail.values(&mut turn, machines, &pack(&here))?)
        }
        _ => Vec::new(),
    };
    let everywhere = peers.gather_bytes(call, &everywhere)?.swap_remove(0);
    let values: Option<Vec<_>> = unpack(&everywhere)
        .and_then(|machines| machines.iter().map(|packed| unpack(packed)).collect());
    let values = values.map(|values| values.concat());
    let values = values.filter(|values| values.len() == seat.world_size);
    values.ok_or_else(|| CommError::PeerFailed {
        rank: seat.rank(),
        call: Box::new(call.clone()),
        peer: seat.first_rank,
        reason: "what it gathered is not what ranks gave".to_owned(),
    })
}

/// A collective on a buffer.
struct Work<'a> {
    seat: Seat,
    machines: &'a Machines,
    call: &'a Call,
    dtype: DType,
    range: Range<usize>,
}

impl Work<'_> {
    /// Each part goes from the rank beside it to all others; nothing, where there is something to sum.
    fn parts(&self) -> Vec<(usize, Range<usize>)> {
        match (self.call.operation, self.call.root) {
            (Operation::AllGather, _) => (0..self.seat.world_size)
                .map(|rank| {
                    (
                        rank,
                        shard_range(self.range.clone(), self.seat.world_size, rank),
                    )
                })
                .collect(),
            (_, Some(root)) => vec![(root, self.range.clone())],
            _ => Vec::new(),
        }
    }

    /// What goes over this rank's rail, of copies of which element 0 is where `copies` says.
    fn over_rail(
        &self,
        meeting: &Meeting,
        rail: &mut Rail,
        copies: Vec<*mut u8>,
        range: &Range<usize>,
        parts: Option<&[(usize, Range<usize>)]>,
    ) -> Result<()> {
        let region = Region {
            machines: self.machines,
            rail: self.seat.local_rank,
            dtype: self.dtype,
            copies,
        };
        let mut turn = Turn::new(self.seat.rank(), meeting, self.call);
        if let Some(parts) = parts {
            return rail.spread(&mut turn, &region, parts);
        }
        let wanted = Wanted {
            operation: self.call.operation,
            range: &self.range,
        };
        rail.reduce(&mut turn, &region, range, &wanted)
    }

    fn sums(&self) -> bool {
        matches!(
            self.call.operation,
            Operation::AllReduce | Operation::ReduceScatter
        )
    }

    fn in_place(&self, peers: &mut Peers, rail: &mut Option<Rail>, index: usize) -> Result<()> {
        let parts = (!self.sums()).then(|| self.parts());
        let copies = peers.copies(index, self.dtype, 0);
        peers.meeting.meet(self.call, 0)?;
        if let Some(parts) = &parts {
            let (local_rank, first) = (self.seat.local_rank, self.seat.first_rank);
            let here = first..first + self.seat.local_size;
            let others = parts
                .iter()
                .filter(|(giver, _)| here.contains(giver) && *giver != self.seat.rank());
            for (giver, part) in others {
                let (start, bytes) = (part.start * self.size(), part.len() * self.size());
                // SAFETY: both copies hold the part. Until the next meeting the giver's is written by
                // nobody, and this rank's is touched there by this rank only, with the buffer lent to it:
                // what goes over rails is parts of other machines.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        copies[giver - first].wrapping_add(start).cast_const(),
                        copies[local_rank].wrapping_add(start),
                        bytes,
                    );
                };
            }
        }
        if let Some(rail) = rail {
            self.over_rail(&peers.meeting, rail, copies, &self.range, parts.as_deref())?;
        }
        peers.meeting.meet(self.call, 0)
    }

    /// The same for private buffers, with one piece after the other in the memory that this machine's
    /// ranks share. Three meetings a piece: the next one begins when all have taken what was there.
    fn staged(
        &self,
        peers: &mut Peers,
        rail: &mut Option<Rail>,
        buffer: &mut Buffer,
    ) -> Result<()> {
        let whole = [(usize::MAX, self.range.clone())];
        let parts = if self.sums() {
            whole.to_vec()
        } else {
            self.parts()
        };
        let len = SCRATCH_BYTES / self.size();
        let mut first = true;
        for (giver, part) in parts {
            let mut start = part.start;
            // Something empty meets once, so that a mismatch is found.
            while start < part.end || first {
                let piece = start..(start + len).min(part.end);
                self.stage(peers, rail, buffer, (giver, &piece))?;
                start = piece.end.max(start + usize::from(first && part.is_empty()));
                first = false;
            }
        }
        Ok(())
    }

    fn stage(
        &self,
        peers: &mut Peers,
        rail: &mut Option<Rail>,
        buffer: &mut Buffer,
        (giver, piece): (usize, &Range<usize>),
    ) -> Result<()> {
        let (rank, local_rank) = (self.seat.rank(), self.seat.local_rank);
        // What is summed lies in each rank's own area, what is copied in the first's.
        let areas: Vec<_> = (0..self.seat.local_size)
            .map(|local| peers.scratch(if self.sums() { local } else { 0 }))
            .collect();
        let bytes = piece.start * self.size()..piece.end * self.size();
        let in_buffer = "a call begins with a look at where its buffer is";
        if self.sums() || giver == rank {
            let own = &buffer.as_bytes().expect(in_buffer)[bytes.clone()];
            // SAFETY: a piece fits in the area, which until the next meeting is this rank's alone: its
            // own, or that of the copy, which nobody else fills.
            unsafe { std::ptr::copy_nonoverlapping(own.as_ptr(), areas[local_rank], own.len()) };
        }
        peers.meeting.meet(self.call, 0)?;
        if let Some(rail) = rail {
            let mut areas = areas.clone();
            areas.truncate(if self.sums() { areas.len() } else { 1 });
            // So that the piece begins where its elements would.
            let copies = areas
                .iter()
                .map(|area| area.wrapping_sub(bytes.start))
                .collect();
            let parts = (!self.sums()).then(|| {
                // Whoever gives it, it lies in the first rank's area now.
                let machine = self.machines.machine_of(giver);
                [(self.machines.ranks_of(machine).start, piece.clone())]
            });
            let parts = parts.as_ref().map(|parts| &parts[..]);
            self.over_rail(&peers.meeting, rail, copies, piece, parts)?;
        }
        peers.meeting.meet(self.call, 0)?;
        if giver != rank {
            let own = &mut buffer.as_mut_bytes().expect(in_buffer)[bytes];
            // SAFETY: as above; who wrote it is done, and nobody writes there before the next meeting.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    areas[local_rank].cast_const(),
                    own.as_mut_ptr(),
                    own.len(),
                );
            };
        }
        peers.meeting.meet(self.call, 0)
    }

    fn size(&self) -> usize {
        self.dtype.size_in_bytes()
    }
}

impl ProcessGroup for MachinesGroup {
    fn rank(&self) -> usize {
        self.local.rank()
    }

    fn world_size(&self) -> usize {
        self.local.world_size()
    }

    fn allocate(&mut self, dtype: DType, len: usize) -> Result<Buffer> {
        let place = Place {
            dtype,
            range: 0..len,
            allocation: None,
            on_device: false,
        };
        let Self {
            local,
            machines,
            rail,
            ..
        } = self;
        let allocated = local.run(Operation::Allocate, Some(place), None, |local, call| {
            gather(local, machines, rail.as_mut(), call, &[])?;
            let rank = local.seat().rank();
            local
                .peers()
                .allocate(dtype, len)
                .map_err(|source| CommError::Memory {
                    rank,
                    call: Box::new(call.clone()),
                    source,
                })
        });
        self.tell(allocated)
    }

    fn all_reduce(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()> {
        self.on_buffer(Operation::AllReduce, buffer, range, None)
    }

    fn reduce_scatter(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<Range<usize>> {
        self.on_buffer(Operation::ReduceScatter, buffer, range.clone(), None)?;
        Ok(shard_range(range, self.world_size(), self.rank()))
    }

    fn all_gather(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()> {
        self.on_buffer(Operation::AllGather, buffer, range, None)
    }

    fn broadcast(&mut self, buffer: &mut Buffer, range: Range<usize>, root: usize) -> Result<()> {
        self.on_buffer(Operation::Broadcast, buffer, range, Some(root))
    }

    fn barrier(&mut self) -> Result<()> {
        self.gather(Operation::Barrier, None, &[]).map(drop)
    }

    fn sum_scalars(&mut self, values: &mut [f64]) -> Result<()> {
        let place = Place {
            dtype: DType::F64,
            range: 0..values.len(),
            allocation: None,
            on_device: false,
        };
        let own: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let all = self.gather(Operation::SumScalars, Some(place), &own)?;
        for (rank, bytes) in all.iter().enumerate() {
            for (sum, bytes) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
                let value = f64::from_le_bytes(*bytes);
                *sum = if rank == 0 { value } else { *sum + value };
            }
        }
        Ok(())
    }

    fn gather_bytes(&mut self, value: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.gather(Operation::GatherBytes, None, value)
    }

    fn fail(&mut self, reason: &str) {
        self.local.fail(reason);
        self.end_with(&Last::Failed {
            rank: self.rank(),
            reason,
        });
    }

    fn seconds(&self) -> f64 {
        self.local.seconds()
    }
}

impl HostGroup for MachinesGroup {
    fn timeout(&self) -> Duration {
        self.local.timeout()
    }

    fn begin(
        &mut self,
        operation: Operation,
        place: Option<Place>,
        root: Option<usize>,
    ) -> Result<Call> {
        self.local.begin(operation, place, root)
    }

    fn completed(&mut self) {
        self.local.completed();
    }

    /// Sees the ranks of this machine alone; those of neighbours are compared when they meet.
    fn compare(&self) -> Result<()> {
        self.local.compare()
    }

    fn check(&self, call: &Call) -> Result<()> {
        if let Some(rail) = &self.rail {
            rail.check(self.rank(), call)?;
        }
        self.local.check(call)
    }

    /// Of this machine.
    fn records(&self) -> Records {
        self.local.records()
    }
}

impl Drop for MachinesGroup {
    fn drop(&mut self) {
        let rank = self.rank();
        self.end_with(&if std::thread::panicking() {
            Last::Failed {
                rank,
                reason: "it panicked",
            }
        } else {
            Last::Left
        });
    }
}

/// Values one after the other, each behind its length.
fn pack(values: &[Vec<u8>]) -> Vec<u8> {
    let lens = values.iter().map(|value| 8 + value.len());
    let mut packed = Vec::with_capacity(lens.sum());
    for value in values {
        packed.extend((value.len() as u64).to_le_bytes());
        packed.extend(value);
    }
    packed
}

/// `None` for what nobody packed.
fn unpack(mut packed: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut values = Vec::new();
    while !packed.is_empty() {
        let (len, rest) = packed.split_first_chunk()?;
        let (value, rest) =
            rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        values.push(value.to_vec());
        packed = rest;
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_are_unpacked_as_they_were_packed(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            prop_assert_eq!(unpack(&pack(&values)), Some(values));
        }

        #[test]
        fn any_bytes_are_values_or_none(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(values) = unpack(&bytes) {
                prop_assert_eq!(pack(&values), bytes);
            }
        }
    }
}
