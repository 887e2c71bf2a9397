//! A communicator of NCCL: made, asked, called, ended.

use std::{
    ffi::c_void,
    marker::PhantomData,
    ops::Range,
    ptr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use cordee_memory::DType;
use nccl_sys::{Comm, Config, DataType, Library, ReductionOperation, Status, Stream, UniqueId};

/// A function of NCCL that did not do what it was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    pub(super) function: &'static str,
    pub(super) status: Status,
}

type Answer<T = ()> = Result<T, Refused>;

/// Work that was begun and goes on is fine.
fn expect(function: &'static str, status: Status) -> Answer {
    match status {
        Status::SUCCESS | Status::IN_PROGRESS => Ok(()),
        _ => Err(Refused { function, status }),
    }
}

/// Whether NCCL takes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Ready,
    /// It is still busy with the last.
    InProgress,
}

/// Elements of a buffer of the device, and whose they are.
#[derive(Debug)]
pub(super) struct Region {
    /// Address of the buffer's first element.
    pub(super) start: u64,
    pub(super) dtype: DType,
    pub(super) range: Range<usize>,
    /// By rank.
    pub(super) shards: Vec<Range<usize>>,
    pub(super) rank: usize,
    pub(super) stream: Stream,
}

impl Region {
    fn address(&self, element: usize) -> *mut c_void {
        (self.start + (element * self.dtype.size_in_bytes()) as u64) as *mut c_void
    }

    fn data_type(&self) -> DataType {
        match self.dtype {
            DType::F32 => DataType::Float32,
            DType::F64 => DataType::Float64,
            DType::Bf16 => DataType::Bfloat16,
        }
    }

    /// Elements of each shard, where all have as many.
    fn equal_shards(&self) -> Option<usize> {
        let len = self.shards[0].len();
        self.shards
            .iter()
            .all(|shard| shard.len() == len)
            .then_some(len)
    }

    /// Shards that hold something, with their ranks.
    fn full_shards(&self) -> impl Iterator<Item = (i32, &Range<usize>)> {
        let shards = self.shards.iter().enumerate();
        shards
            .filter(|(_, shard)| !shard.is_empty())
            .map(|(rank, shard)| (rank as i32, shard))
    }
}

/// An id to meet under.
pub(super) fn unique_id(library: Library) -> Answer<UniqueId> {
    let mut id = UniqueId { internal: [0; 128] };
    // SAFETY: writes the id.
    let status = unsafe { (library.functions().get_unique_id)(&raw mut id) };
    expect("ncclGetUniqueId", status)?;
    Ok(id)
}

/// A communicator, ended by [`destroy`](Self::destroy) or [`abort`](Self::abort). Dropped, it lives on until
/// the process ends: both of those can wait, which a drop must not.
#[derive(Debug)]
pub(super) struct Communicator {
    library: Library,
    comm: Comm,
}

// SAFETY: a communicator may be used by any thread, by one at a time.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Begins to make one on the GPU that is current in this thread; it is made once it is
    /// [`Progress::Ready`].
    pub(super) fn begin(
        library: Library,
        id: UniqueId,
        rank: usize,
        world_size: usize,
    ) -> Answer<Self> {
        let (mut comm, mut config) = (ptr::null_mut(), Config::non_blocking());
        // SAFETY: the places are ours; NCCL copies the config before it returns.
        let status = unsafe {
            (library.functions().comm_init_rank_config)(
                &raw mut comm,
                world_size as i32,
                id,
                rank as i32,
                &raw mut config,
            )
        };
        expect("ncclCommInitRankConfig", status)?;
        Ok(Self { library, comm })
    }

    pub(super) fn progress(&self) -> Answer<Progress> {
        let mut status = Status::SUCCESS;
        // SAFETY: the communicator is alive.
        let asked =
            unsafe { (self.library.functions().comm_get_async_error)(self.comm, &raw mut status) };
        expect("ncclCommGetAsyncError", asked)?;
        match status {
            Status::SUCCESS => Ok(Progress::Ready),
            Status::IN_PROGRESS => Ok(Progress::InProgress),
            // Of whatever was under way.
            status => Err(Refused {
                function: "work that was begun",
                status,
            }),
        }
    }

    pub(super) fn all_reduce(&self, region: &Region) -> Answer {
        let start = region.address(region.range.start);
        // SAFETY: whoever made the region checked that the buffer has these elements, and keeps them
        // alive (contract of `ProcessGroup`); the stream is that of the queue.
        let status = unsafe {
            (self.library.functions().all_reduce)(
                start,
                start,
                region.range.len(),
                region.data_type(),
                ReductionOperation::Sum,
                self.comm,
                region.stream,
            )
        };
        expect("ncclAllReduce", status)
    }

    /// In place: NCCL knows it by the shard's place behind those of lower ranks.
    pub(super) fn reduce_scatter(&self, region: &Region) -> Answer {
        let functions = self.library.functions();
        if let Some(len) = region.equal_shards() {
            // SAFETY: as in `all_reduce`; the shards follow each other.
            let status = unsafe {
                (functions.reduce_scatter)(
                    region.address(region.range.start),
                    region.address(region.shards[region.rank].start),
                    len,
                    region.data_type(),
                    ReductionOperation::Sum,
                    self.comm,
                    region.stream,
                )
            };
            return expect("ncclReduceScatter", status);
        }
        let calls = Calls::gather(self.library)?;
        for (root, shard) in region.full_shards() {
            let start = region.address(shard.start);
            // SAFETY: as in `all_reduce`.
            let status = unsafe {
                (functions.reduce)(
                    start,
                    start,
                    shard.len(),
                    region.data_type(),
                    ReductionOperation::Sum,
                    root,
                    self.comm,
                    region.stream,
                )
            };
            expect("ncclReduce", status)?;
        }
        calls.begin()
    }

    pub(super) fn all_gather(&self, region: &Region) -> Answer {
        if let Some(len) = region.equal_shards() {
            // SAFETY: as in `reduce_scatter`.
            let status = unsafe {
                (self.library.functions().all_gather)(
                    region.address(region.shards[region.rank].start),
                    region.address(region.range.start),
                    len,
                    region.data_type(),
                    self.comm,
                    region.stream,
                )
            };
            return expect("ncclAllGather", status);
        }
        let calls = Calls::gather(self.library)?;
        for (root, shard) in region.full_shards() {
            self.broadcast_part(region, shard, root)?;
        }
        calls.begin()
    }

    pub(super) fn broadcast(&self, region: &Region, root: usize) -> Answer {
        self.broadcast_part(region, &region.range, root as i32)
    }

    fn broadcast_part(&self, region: &Region, part: &Range<usize>, root: i32) -> Answer {
        let start = region.address(part.start);
        // SAFETY: as in `all_reduce`.
        let status = unsafe {
            (self.library.functions().broadcast)(
                start,
                start,
                part.len(),
                region.data_type(),
                root,
                self.comm,
                region.stream,
            )
        };
        expect("ncclBroadcast", status)
    }

    /// Begins to end all work, together with the other ranks.
    pub(super) fn finalize(&self) -> Answer {
        // SAFETY: the communicator is alive; the caller destroys it next.
        let status = unsafe { (self.library.functions().comm_finalize)(self.comm) };
        expect("ncclCommFinalize", status)
    }

    /// Frees one that is finalized.
    pub(super) fn destroy(self) -> Answer {
        // SAFETY: taken by value, so nobody uses it afterwards.
        let status = unsafe { (self.library.functions().comm_destroy)(self.comm) };
        expect("ncclCommDestroy", status)
    }

    /// Ends what is under way, whatever the other ranks do, and frees the communicator. NCCL has been
    /// seen to hang in this, so it runs in a thread of its own; after `limit`, how long it was.
    pub(super) fn abort(self, limit: Duration) -> Result<(), Duration> {
        let started = Instant::now();
        let (tell, told) = mpsc::channel();
        let ending = thread::Builder::new()
            .name("nccl abort".to_owned())
            .spawn(move || {
                let communicator = self;
                // SAFETY: moved here, so nobody uses it afterwards; no other thread is inside NCCL with
                // it, since calls borrow it. What the answer is makes no difference.
                let _ = unsafe { (communicator.library.functions().comm_abort)(communicator.comm) };
                let _ = tell.send(());
            });
        match ending {
            Ok(_) if told.recv_timeout(limit).is_ok() => Ok(()),
            _ => Err(started.elapsed()),
        }
    }
}

/// The calls of this thread between its making and its end, which begin together. It stays in its thread,
/// since NCCL counts by threads.
#[derive(Debug)]
struct Calls {
    library: Library,
    gathering: bool,
    of_this_thread: PhantomData<*const ()>,
}

impl Calls {
    fn gather(library: Library) -> Answer<Self> {
        // SAFETY: ended by `begin` or by the drop.
        expect("ncclGroupStart", unsafe {
            (library.functions().group_start)()
        })?;
        Ok(Self {
            library,
            gathering: true,
            of_this_thread: PhantomData,
        })
    }

    fn begin(mut self) -> Answer {
        self.gathering = false;
        // SAFETY: began in `gather`, in this thread.
        expect("ncclGroupEnd", unsafe {
            (self.library.functions().group_end)()
        })
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        if self.gathering {
            // SAFETY: as in `begin`. A call before it was refused, which is the error to tell of.
            let _ = unsafe { (self.library.functions().group_end)() };
        }
    }
}
