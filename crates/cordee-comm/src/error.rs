//! What can go wrong among ranks, and who is to be looked at.

use std::{ops::Range, time::Duration};

use cordee_memory::MemoryError;

use crate::{Call, Records, record::list};

/// A collective that did not come to its end. The group is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// Ranks did not arrive before the deadline.
    #[error(
        "rank {rank} waited {:.1} s in {call} {}{records}",
        waited.as_secs_f64(), whom(missing)
    )]
    Timeout {
        /// The rank that waited.
        rank: usize,
        /// Its call.
        call: Box<Call>,
        /// How long it waited.
        waited: Duration,
        /// The ranks that did not arrive, in ascending order. None, where all of them have begun a
        /// call on buffers of devices that does not end.
        missing: Vec<usize>,
        /// Where every rank stood then.
        records: Records,
    },
    /// A rank on another machine could not be reached before the deadline.
    #[error(
        "rank {rank} cannot reach rank {peer} on the machine next to its own for {:.1} s: {why}: look at that machine \
             and at the network between them",
        waited.as_secs_f64()
    )]
    Unreachable {
        /// This rank.
        rank: usize,
        /// The other one.
        peer: usize,
        /// How long it was tried.
        waited: Duration,
        /// What the last attempt came to.
        why: String,
    },
    /// Another rank gave up, and said so.
    #[error("rank {rank} cannot finish {call}: rank {peer} failed: {reason}")]
    PeerFailed {
        /// The rank that learnt it.
        rank: usize,
        /// Its call.
        call: Box<Call>,
        /// The first rank that failed.
        peer: usize,
        /// What that rank said.
        reason: String,
    },
    /// Ranks met in different calls.
    #[error(
        "rank {rank}: ranks are not in the same collective: rank {first} is in {first_call}, rank {second} in \
         {second_call}: every rank must make the same calls in the same order with the same arguments"
    )]
    Mismatch {
        /// The rank that tells.
        rank: usize,
        /// The first of two ranks that disagree.
        first: usize,
        /// Its call, in words.
        first_call: String,
        /// The second of them.
        second: usize,
        /// Its call, in words.
        second_call: String,
    },
    /// The group failed in an earlier call.
    #[error("rank {rank} cannot begin {call}: the group failed before: {reason}")]
    Broken {
        /// This rank.
        rank: usize,
        /// The call that was not begun.
        call: Box<Call>,
        /// The earlier failure.
        reason: String,
    },
    /// Elements that the buffer does not have.
    #[error("rank {rank}: {call}: elements {range:?} are not inside a buffer of {len} elements")]
    OutOfRange {
        /// This rank.
        rank: usize,
        /// The call that was not begun.
        call: Box<Call>,
        /// The elements asked for.
        range: Range<usize>,
        /// Elements of the buffer.
        len: usize,
    },
    /// A root that is not a rank of the group.
    #[error("rank {rank}: {call}: there are only {world_size} ranks")]
    NoSuchRoot {
        /// This rank.
        rank: usize,
        /// The call that was not begun.
        call: Box<Call>,
        /// How many ranks there are.
        world_size: usize,
    },
    /// NCCL refused a call, or failed while it did what was asked.
    #[error(transparent)]
    Nccl(Box<NcclFailure>),
    /// Ranks of one group opened different versions of NCCL, which do not work together.
    #[error(
        "rank {rank}: rank {first} has NCCL {first_version}, rank {second} {second_version}: give all ranks the same \
         library, with CORDEE_LIBRARY_PATH for example"
    )]
    NcclVersions {
        /// The rank that tells.
        rank: usize,
        /// The first of two ranks that differ.
        first: usize,
        /// Its version.
        first_version: String,
        /// The second.
        second: usize,
        /// Its version.
        second_version: String,
    },
    /// A failure that could not be cleaned up after: work is still under way on the device.
    #[error(
        "{failure}; NCCL was told to end what is under way and has not done so for {:.0} s: end this process",
        waited.as_secs_f64()
    )]
    Stuck {
        /// What happened first.
        failure: Box<CommError>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Memory could not be had.
    #[error("rank {rank}: {call}: {source}")]
    Memory {
        /// This rank.
        rank: usize,
        /// The call.
        call: Box<Call>,
        /// What the memory said.
        source: MemoryError,
    },
    /// The rank does not fit in the world.
    #[error("rank {rank} cannot join a group of {world_size} ranks: expected 0 to {}", world_size.saturating_sub(1))]
    NoSuchRank {
        /// The rank.
        rank: usize,
        /// How many ranks there are.
        world_size: usize,
    },
    /// The memory to meet in is not a group's, or of another version.
    #[error(
        "rank {rank} cannot join: the shared memory begins with {found:#018x} where {expected:#018x} marks a group: \
             start every rank from the same build"
    )]
    Foreign {
        /// This rank.
        rank: usize,
        /// The first eight bytes there.
        found: u64,
        /// The first eight bytes of a group of this version.
        expected: u64,
    },
    /// The memory to meet in belongs to a group of another size.
    #[error(
        "rank {rank} cannot join a group of {expected} ranks: the shared memory is of a group of {found}"
    )]
    WorldSize {
        /// This rank.
        rank: usize,
        /// The size it was told.
        expected: usize,
        /// The size that others were told.
        found: usize,
    },
    /// Somebody joined under the same number before.
    #[error(
        "rank {rank} cannot join: process {process} joined as rank {rank} before; \
             every attempt of a run needs memory of its own"
    )]
    RankTaken {
        /// The rank.
        rank: usize,
        /// The process that has it.
        process: u32,
    },
}

fn whom(missing: &[usize]) -> String {
    if missing.is_empty() {
        // Records are of one machine.
        return "though every rank of this machine has begun it: look at other machines' ranks, the devices \
                and the links between them"
            .to_owned();
    }
    format!("for {}: look at what happened there last", list(missing))
}

/// What NCCL said, and about what.
#[derive(Debug, thiserror::Error)]
#[error(
    "rank {rank} of the {world_size} of group `{group}`: {call}: {function} of NCCL {version}: {what} (result {code}){}{records}",
    detail(last)
)]
pub struct NcclFailure {
    /// This rank.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
    /// What the group is called.
    pub group: String,
    /// The call.
    pub call: Call,
    /// The function that answered so.
    pub function: &'static str,
    /// NCCL's version.
    pub version: String,
    /// The answer, an `ncclResult_t`.
    pub code: i32,
    /// The answer in words.
    pub what: String,
    /// The last error that NCCL keeps; empty where it keeps none.
    pub last: String,
    /// Where every rank stood then.
    pub records: Records,
}

fn detail(last: &str) -> String {
    if last.is_empty() {
        String::new()
    } else {
        format!(": {last}")
    }
}
