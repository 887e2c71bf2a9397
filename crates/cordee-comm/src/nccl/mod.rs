//! A process group for buffers of GPUs, over NCCL.
//!
//! Everything that is about the host (its buffers, scalars, bytes, barriers, meeting at all) goes to
//! another group, over which this one is made. Buffers of the device go to NCCL, on a queue beside the
//! one that computes. NCCL alone waits for ever for a rank that is gone, says little of what it waited
//! for, and does not see that ranks made different calls; so each call is noted in the other group, and
//! whoever waits here looks at the queue, at NCCL's own errors, at what peers noted, and at the clock.
//!
//! The sum of an all-reduce has the same bits on every rank, in an order that NCCL chooses: by the number
//! of ranks, the size and how the GPUs are linked.

mod communicator;
mod patience;

use std::{
    fmt,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use cordee_memory::{Buffer, DType, DeviceQueue, MemoryError};
use nccl_sys::{Library, UniqueId};

use crate::{
    Call, CommError, HostGroup, NcclFailure, Operation, Place, ProcessGroup, Result, shard_range,
};
use communicator::{Communicator, Progress, Refused, Region};
use patience::Patience;

/// How long NCCL may take to end what is under way. Where it takes longer, only the end of the process
/// helps.
const ABORT: Duration = Duration::from_secs(10);

/// How long work may go on that is all but done, when a peer is known to have failed or left.
const GRACE: Duration = Duration::from_millis(200);

/// The ranks of a run with a GPU each.
pub struct NcclGroup {
    name: String,
    // Dropped, and with it the work ended, before the queue.
    communicator: Option<Communicator>,
    library: Library,
    queue: Box<dyn DeviceQueue>,
    host: Box<dyn HostGroup>,
    /// The last call that was begun on the device and is not known to be done.
    pending: Option<Call>,
    /// Spent in calls about the device.
    seconds: f64,
}

impl fmt::Debug for NcclGroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NcclGroup")
            .field("name", &self.name)
            .field("rank", &self.host.rank())
            .field("world_size", &self.host.world_size())
            .field("library", &self.library)
            .finish_non_exhaustive()
    }
}

impl NcclGroup {
    /// Makes a group of the ranks of `host`, each with the GPU of its `queue`; all of them call this
    /// at the same place of their order. Buffers that are lent later are of that GPU. `name` is for
    /// errors. Returns when all ranks are connected, or an error after the timeout of `host`.
    pub fn new(
        name: &str,
        host: Box<dyn HostGroup>,
        queue: Box<dyn DeviceQueue>,
        library: Library,
    ) -> Result<Self> {
        let mut group = Self {
            name: name.to_owned(),
            communicator: None,
            library,
            queue,
            host,
            pending: None,
            seconds: 0.0,
        };
        let call = group.host.begin(Operation::Join, None, None)?;
        match group.connect(&call) {
            Ok(()) => {
                group.host.completed();
                Ok(group)
            }
            Err(error) => Err(group.give_up(error)),
        }
    }

    /// Ranks agree on a version and an id, and meet in NCCL.
    fn connect(&mut self, call: &Call) -> Result<()> {
        let id = if self.host.rank() == 0 {
            let id = communicator::unique_id(self.library);
            Some(id.map_err(|refused| self.failure(call, &refused))?)
        } else {
            None
        };
        let mut own = self.library.version().0.to_le_bytes().to_vec();
        own.extend(id.iter().flat_map(|id| id.internal));
        let all = self.host.gather_bytes(&own)?;
        self.expect_one_version(&all)?;
        let mut id = UniqueId { internal: [0; 128] };
        id.internal.copy_from_slice(&all[0][4..]);
        // NCCL takes the GPU that is current in this thread: this makes it the queue's.
        self.queue
            .follow()
            .map_err(|source| self.no_queue(call, source))?;
        let (rank, world_size) = (self.host.rank(), self.host.world_size());
        let made = Communicator::begin(self.library, id, rank, world_size);
        self.communicator = Some(made.map_err(|refused| self.failure(call, &refused))?);
        self.settle(call)?;
        // So that none is still connecting when another one fails.
        self.host.barrier()
    }

    fn expect_one_version(&self, all: &[Vec<u8>]) -> Result<()> {
        let version = |bytes: &[u8]| {
            let code = bytes
                .first_chunk()
                .map_or(0, |code| i32::from_le_bytes(*code));
            nccl_sys::Version(code)
        };
        let first = version(&all[0]);
        match all.iter().position(|bytes| version(bytes) != first) {
            None => Ok(()),
            Some(second) => Err(CommError::NcclVersions {
                rank: self.host.rank(),
                first: 0,
                first_version: first.to_string(),
                second,
                second_version: version(&all[second]).to_string(),
            }),
        }
    }

    /// Ends the communicator in order, together with all other ranks: waits for what was begun, and
    /// frees it. The group is of no use for buffers of the device afterwards. One that is dropped
    /// without this is aborted, which is for failures: peers that still work with it fail too.
    pub fn finish(&mut self) -> Result<()> {
        self.wait()?;
        let Some(communicator) = &self.communicator else {
            return Ok(());
        };
        let call = self.host.begin(Operation::Leave, None, None)?;
        let begun = communicator.finalize();
        let ended = match begun {
            Ok(()) => self.settle(&call).and_then(|()| self.host.barrier()),
            Err(refused) => Err(self.failure(&call, &refused)),
        };
        let destroyed = ended.and_then(|()| match self.communicator.take() {
            None => Ok(()),
            Some(communicator) => communicator
                .destroy()
                .map_err(|refused| self.failure(&call, &refused)),
        });
        match destroyed {
            Ok(()) => {
                self.host.completed();
                Ok(())
            }
            Err(error) => Err(self.give_up(error)),
        }
    }

    /// Runs one call on a part of a buffer of the device: begins it, and returns.
    fn on_device(
        &mut self,
        operation: Operation,
        buffer: &mut Buffer,
        range: &Range<usize>,
        root: Option<usize>,
        issue: impl FnOnce(&Communicator, &Region) -> std::result::Result<(), Refused>,
    ) -> Result<()> {
        let started = Instant::now();
        let place = Place {
            dtype: buffer.dtype(),
            range: range.clone(),
            allocation: None,
            on_device: true,
        };
        let call = self.host.begin(operation, Some(place), root)?;
        let result = self
            .region(&call, buffer, range, root)
            .and_then(|region| self.issue(&call, &region, issue));
        let result = result.map_err(|error| self.give_up(error));
        self.seconds += started.elapsed().as_secs_f64();
        result
    }

    /// Checks what a call is about.
    fn region(
        &self,
        call: &Call,
        buffer: &Buffer,
        range: &Range<usize>,
        root: Option<usize>,
    ) -> Result<Region> {
        let (rank, world_size) = (self.host.rank(), self.host.world_size());
        if range.start > range.end || range.end > buffer.len() {
            return Err(CommError::OutOfRange {
                rank,
                call: Box::new(call.clone()),
                range: range.clone(),
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
        let no_memory = |source| CommError::Memory {
            rank,
            call: Box::new(call.clone()),
            source,
        };
        let all = buffer
            .view(0..buffer.len(), &[buffer.len()])
            .map_err(no_memory)?;
        let memory = all.device().ok_or_else(|| {
            no_memory(MemoryError::Place {
                found: "the host's",
                expected: "on a device",
            })
        })?;
        Ok(Region {
            start: memory.address(),
            dtype: buffer.dtype(),
            range: range.clone(),
            shards: (0..world_size)
                .map(|rank| shard_range(range.clone(), world_size, rank))
                .collect(),
            rank,
            stream: self.queue.pointer().as_ptr(),
        })
    }

    fn issue(
        &mut self,
        call: &Call,
        region: &Region,
        issue: impl FnOnce(&Communicator, &Region) -> std::result::Result<(), Refused>,
    ) -> Result<()> {
        let Some(communicator) = &self.communicator else {
            return Err(CommError::Broken {
                rank: self.host.rank(),
                call: Box::new(call.clone()),
                reason: "it was finished".to_owned(),
            });
        };
        self.host.check(call)?;
        // Also makes the GPU the current one of this thread.
        self.queue
            .follow()
            .map_err(|source| self.no_queue(call, source))?;
        self.pending = Some(call.clone());
        // Nobody has anything to say about no elements.
        if region.range.is_empty() {
            return Ok(());
        }
        issue(communicator, region).map_err(|refused| self.failure(call, &refused))?;
        self.settle(call)
    }

    /// Waits until NCCL takes the next call: at first use, ranks are still connecting.
    fn settle(&self, call: &Call) -> Result<()> {
        let mut patience = Patience::new(self.host.timeout());
        loop {
            if self.progress(call)? == Progress::Ready {
                return Ok(());
            }
            self.host.check(call)?;
            self.pause(&mut patience, call)?;
        }
    }

    /// How NCCL's own work stands. What a peer said of its failure comes before what NCCL makes of it.
    fn progress(&self, call: &Call) -> Result<Progress> {
        let Some(communicator) = &self.communicator else {
            return Ok(Progress::Ready);
        };
        communicator.progress().map_err(|refused| {
            let failure = self.failure(call, &refused);
            self.host.check(call).err().unwrap_or(failure)
        })
    }

    /// A little sleep, or the end of patience.
    fn pause(&self, patience: &mut Patience, call: &Call) -> Result<()> {
        patience.pause().map_err(|waited| {
            let records = self.host.records();
            CommError::Timeout {
                rank: self.host.rank(),
                call: Box::new(call.clone()),
                waited,
                missing: records.behind(call.sequence),
                records,
            }
        })
    }

    /// Waits until the queue is empty.
    fn drain(&self, call: &Call) -> Result<()> {
        let mut patience = Patience::new(self.host.timeout());
        let mut grace = None;
        loop {
            let progress = self.progress(call)?;
            let done = self
                .queue
                .is_done()
                .map_err(|source| self.no_queue(call, source))?;
            if done && progress == Progress::Ready {
                return self.host.compare();
            }
            if let Err(error) = self.host.check(call) {
                // A peer that left after its last call does not take that call with it.
                let left = matches!(error, CommError::PeerFailed { .. });
                let grace = grace.get_or_insert_with(|| Patience::new(GRACE));
                if !left || grace.pause().is_err() {
                    return Err(error);
                }
                continue;
            }
            self.pause(&mut patience, call)?;
        }
    }

    /// Tells the peers, ends what is under way, and passes the error on.
    fn give_up(&mut self, error: CommError) -> CommError {
        self.host.fail(&error.to_string());
        match self.abort() {
            Ok(()) => error,
            Err(waited) => CommError::Stuck {
                failure: Box::new(error),
                waited,
            },
        }
    }

    /// Ends what is under way, whatever the peers do; else says how long it was waited for.
    fn abort(&mut self) -> std::result::Result<(), Duration> {
        self.pending = None;
        let Some(communicator) = self.communicator.take() else {
            return Ok(());
        };
        communicator.abort(ABORT)?;
        // What was under way ends now, so that its memory can be given back.
        let started = Instant::now();
        while matches!(self.queue.is_done(), Ok(false)) {
            if started.elapsed() > ABORT {
                return Err(started.elapsed());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn failure(&self, call: &Call, refused: &Refused) -> CommError {
        CommError::Nccl(Box::new(NcclFailure {
            rank: self.host.rank(),
            world_size: self.host.world_size(),
            group: self.name.clone(),
            call: call.clone(),
            function: refused.function,
            version: self.library.version().to_string(),
            code: refused.status.0,
            what: self.library.error_string(refused.status),
            last: self.library.last_error(),
            records: self.host.records(),
        }))
    }

    fn no_queue(&self, call: &Call, source: MemoryError) -> CommError {
        CommError::Memory {
            rank: self.host.rank(),
            call: Box::new(call.clone()),
            source,
        }
    }
}

impl ProcessGroup for NcclGroup {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn world_size(&self) -> usize {
        self.host.world_size()
    }

    fn allocate(&mut self, dtype: DType, len: usize) -> Result<Buffer> {
        self.host.allocate(dtype, len)
    }

    fn all_reduce(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()> {
        if !buffer.is_on_device() {
            return self.host.all_reduce(buffer, range);
        }
        let issue = Communicator::all_reduce;
        self.on_device(Operation::AllReduce, buffer, &range, None, issue)
    }

    fn reduce_scatter(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<Range<usize>> {
        if !buffer.is_on_device() {
            return self.host.reduce_scatter(buffer, range);
        }
        let issue = Communicator::reduce_scatter;
        self.on_device(Operation::ReduceScatter, buffer, &range, None, issue)?;
        Ok(shard_range(range, self.world_size(), self.rank()))
    }

    fn all_gather(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()> {
        if !buffer.is_on_device() {
            return self.host.all_gather(buffer, range);
        }
        let issue = Communicator::all_gather;
        self.on_device(Operation::AllGather, buffer, &range, None, issue)
    }

    fn broadcast(&mut self, buffer: &mut Buffer, range: Range<usize>, root: usize) -> Result<()> {
        if !buffer.is_on_device() {
            return self.host.broadcast(buffer, range, root);
        }
        let issue =
            |communicator: &Communicator, region: &Region| communicator.broadcast(region, root);
        self.on_device(Operation::Broadcast, buffer, &range, Some(root), issue)
    }

    fn fence(&mut self) -> Result<()> {
        let Some(call) = self.pending.clone() else {
            return Ok(());
        };
        let led = self.queue.lead();
        led.map_err(|source| {
            let error = self.no_queue(&call, source);
            self.give_up(error)
        })
    }

    fn wait(&mut self) -> Result<()> {
        let Some(call) = self.pending.clone() else {
            return Ok(());
        };
        let started = Instant::now();
        let result = self.drain(&call);
        self.seconds += started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.pending = None;
                self.host.completed();
                Ok(())
            }
            Err(error) => Err(self.give_up(error)),
        }
    }

    fn barrier(&mut self) -> Result<()> {
        self.host.barrier()
    }

    fn sum_scalars(&mut self, values: &mut [f64]) -> Result<()> {
        self.host.sum_scalars(values)
    }

    fn gather_bytes(&mut self, value: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.host.gather_bytes(value)
    }

    fn fail(&mut self, reason: &str) {
        self.host.fail(reason);
        // What still hangs is ended with the process.
        let _ = self.abort();
    }

    fn seconds(&self) -> f64 {
        self.host.seconds() + self.seconds
    }
}

impl Drop for NcclGroup {
    fn drop(&mut self) {
        let _ = self.abort();
    }
}
