//! The first bytes of the shared memory: who is there, in which call, and who has failed.
//!
//! Everything here is atomic, since any rank may read any of it at any time.

use std::{
    mem::{align_of, size_of},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use cordee_memory::SharedMapping;
use rustix::thread::futex;

use super::{Seat, journal::Journal};
use crate::{CommError, Result, call::CALL_WORDS};

/// Marks the memory of a group; the last byte is the version of everything in this module.
const MAGIC: u64 = u64::from_be_bytes(*b"cordee\0\x02");

/// Bytes of a reason that peers get to read.
const REASON_BYTES: usize = 512;

/// Keeps what different ranks write out of each other's cache lines; two lines, since they are
/// fetched in pairs.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct OwnLine<T>(pub(super) T);

/// What the group has in common.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Header {
    magic: AtomicU64,
    world_size: AtomicU32,
    /// One more than the rank that failed first; 0 while none has.
    first_failed: AtomicU32,
    /// Ranks that have arrived at the coming meeting.
    pub(super) arrived: OwnLine<AtomicU32>,
    /// Twice the meetings that are over, plus one once a rank has failed. Ranks sleep on it.
    pub(super) epoch: OwnLine<AtomicU32>,
}

/// Twice in a row, so that a rank can say what its next call is while others still read the last.
pub(super) type Words = [AtomicU64; CALL_WORDS];

/// What one rank says, and nobody else writes.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct RankPage {
    /// Number of the process that joined; 0 while none has.
    process: AtomicU32,
    /// Meetings this rank has arrived at.
    pub(super) met: AtomicU32,
    /// The calls of the last two meetings, by parity of the meeting.
    pub(super) calls: [Words; 2],
    /// A number that goes with each of those calls and may differ among ranks.
    pub(super) extras: [AtomicU64; 2],
    reason_len: AtomicU32,
    reason: [AtomicU8; REASON_BYTES],
    pub(super) journal: Journal,
}

const PAGES_OFFSET: usize = size_of::<Header>().next_multiple_of(align_of::<RankPage>());

/// The control area, mapped.
#[derive(Debug)]
pub(super) struct Control {
    mapping: Arc<SharedMapping>,
    world_size: usize,
}

impl Control {
    /// Bytes that a group of this size needs.
    pub(super) fn bytes(world_size: usize) -> usize {
        PAGES_OFFSET + world_size * size_of::<RankPage>()
    }

    /// Enters this process at its seat, if the memory is this group's and the place is free.
    pub(super) fn claim(mapping: Arc<SharedMapping>, seat: &Seat) -> Result<Self> {
        let (rank, world_size) = (seat.rank(), seat.local_size);
        assert!(
            mapping.len() >= Self::bytes(world_size),
            "the mapping holds the control area"
        );
        let control = Self {
            mapping,
            world_size,
        };
        let header = control.header();
        // Whoever comes first marks the memory; zero is what fresh memory holds.
        if let Err(found) =
            header
                .magic
                .compare_exchange(0, MAGIC, Ordering::AcqRel, Ordering::Acquire)
            && found != MAGIC
        {
            return Err(CommError::Foreign {
                rank,
                found,
                expected: MAGIC,
            });
        }
        let size = world_size as u32;
        if let Err(found) =
            header
                .world_size
                .compare_exchange(0, size, Ordering::AcqRel, Ordering::Acquire)
            && found != size
        {
            return Err(CommError::WorldSize {
                rank,
                expected: world_size,
                found: found as usize,
            });
        }
        let own = &control.page(seat.local_rank).process;
        if let Err(process) =
            own.compare_exchange(0, std::process::id(), Ordering::AcqRel, Ordering::Acquire)
        {
            return Err(CommError::RankTaken { rank, process });
        }
        Ok(control)
    }

    pub(super) fn header(&self) -> &Header {
        // SAFETY: the mapping is aligned to a page and holds `bytes(world_size)` bytes (checked in
        // `claim`); it begins with a header, of which every field is atomic and any bits are valid,
        // so that other processes may write it meanwhile. It lives as long as `self`.
        unsafe { self.mapping.pointer().cast::<Header>().as_ref() }
    }

    pub(super) fn page(&self, rank: usize) -> &RankPage {
        assert!(
            rank < self.world_size,
            "rank {rank} is not one of {}",
            self.world_size
        );
        // SAFETY: as in `header`; `rank` is one of the pages that follow, each aligned since
        // PAGES_OFFSET and the size of a page are multiples of its alignment.
        unsafe {
            self.mapping
                .pointer()
                .add(PAGES_OFFSET)
                .cast::<RankPage>()
                .add(rank)
                .as_ref()
        }
    }

    /// Says that `rank` gives up, and wakes whoever sleeps.
    pub(super) fn fail(&self, rank: usize, reason: &str) {
        let page = self.page(rank);
        let bytes = reason.as_bytes();
        let len = bytes.len().min(REASON_BYTES);
        for (target, byte) in page.reason.iter().zip(&bytes[..len]) {
            target.store(*byte, Ordering::Relaxed);
        }
        page.reason_len.store(len as u32, Ordering::Release);
        let header = self.header();
        // Later failures are mostly consequences: the first is the one to report.
        let _ = header.first_failed.compare_exchange(
            0,
            rank as u32 + 1,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        header.epoch.0.fetch_or(1, Ordering::AcqRel);
        self.wake_all();
    }

    /// The rank that failed first, and what it said.
    pub(super) fn first_failed(&self) -> Option<(usize, String)> {
        let rank = (self.header().first_failed.load(Ordering::Acquire) as usize).checked_sub(1)?;
        if rank >= self.world_size {
            return None;
        }
        let page = self.page(rank);
        let len = (page.reason_len.load(Ordering::Acquire) as usize).min(REASON_BYTES);
        let bytes: Vec<u8> = page.reason[..len]
            .iter()
            .map(|byte| byte.load(Ordering::Relaxed))
            .collect();
        Some((rank, String::from_utf8_lossy(&bytes).into_owned()))
    }

    pub(super) fn wake_all(&self) {
        // Flags empty: not private to this process. Waking cannot fail on an address that is mapped.
        let _ = futex::wake(
            &self.header().epoch.0,
            futex::Flags::empty(),
            i32::MAX as u32,
        );
    }
}
