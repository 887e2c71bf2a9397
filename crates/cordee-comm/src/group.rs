//! The contract of a process group.

use std::{fmt::Debug, ops::Range, time::Duration};

use cordee_memory::{Buffer, DType};

use crate::{Call, Operation, Place, Records, Result};

/// Ranks that work together. Every rank makes the same calls in the same order with the same
/// arguments; a rank that does otherwise is found out and every rank gets an error that names it.
///
/// Every call waits for the other ranks, at most for the timeout the group was made with. After an
/// error the group is of no more use, and the contents of the buffer that was lent are lost; the
/// other ranks are told, so that they do not wait for this one.
///
/// A group can move to a thread of its own. A bucket of gradients that is reduced there while
/// others are still being written is a [`Buffer`] of its own, sent along and back.
///
/// Buffers of the host are done with when a call returns. On buffers of a device calls begin work on a
/// queue beside the one that computes, after what that was given before, and return: what the device
/// is given later may use the result after a [`fence`](Self::fence), and errors of the work come out
/// of [`wait`](Self::wait). Whoever lent a buffer of a device keeps it, and writes nothing to it, until
/// a fence or a wait after the call: memory that is given back after a fence goes back in the order of
/// the device's work, so that nobody else gets it too early. Before the host waits for a device by
/// other means, it waits here: a peer that is gone ends this waiting and no other.
pub trait ProcessGroup: Send {
    /// Which of the ranks this is, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world_size(&self) -> usize;

    /// A zeroed buffer of `len` elements that the other ranks can reach without copies. It lives
    /// until the group and the buffer are both gone: made once, not per step.
    fn allocate(&mut self, dtype: DType, len: usize) -> Result<Buffer>;

    /// Puts the sum over all ranks into `range` of every rank's buffer: the same bits everywhere.
    /// On the host ranks are added in ascending order, whatever the timing.
    fn all_reduce(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()>;

    /// Puts the sum over all ranks into this rank's shard of `range`, and returns that shard: the
    /// one of [`shard_range`](crate::shard_range). The rest of `range` holds nothing of use then.
    fn reduce_scatter(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<Range<usize>>;

    /// Puts every rank's shard of `range`, as of [`shard_range`](crate::shard_range), into all
    /// other ranks' buffers.
    fn all_gather(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()>;

    /// Puts `range` of the buffer of rank `root` into all other ranks' buffers.
    fn broadcast(&mut self, buffer: &mut Buffer, range: Range<usize>, root: usize) -> Result<()>;

    /// What was begun on buffers of a device comes before whatever that is given to compute from now
    /// on. Does not wait.
    fn fence(&mut self) -> Result<()> {
        Ok(())
    }

    /// Returns once what was begun on buffers of a device is done, or an error by the deadline.
    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    /// Returns once every rank has called it.
    fn barrier(&mut self) -> Result<()>;

    /// Replaces each value by its sum over all ranks, added in ascending order of ranks. For a few
    /// values of the host: losses, counts.
    fn sum_scalars(&mut self, values: &mut [f64]) -> Result<()>;

    /// What every rank gave, by rank; lengths may differ. For a few bytes of the host: hashes,
    /// names, timings.
    fn gather_bytes(&mut self, value: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Tells the other ranks that this one has failed: whatever they wait for, now or later,
    /// returns at once with `reason`. Dropping a group during a panic does the same.
    fn fail(&mut self, reason: &str);

    /// Seconds spent in calls so far, waiting for other ranks included.
    fn seconds(&self) -> f64;
}

/// A group over the host's memory on which a transport for buffers of devices can be built: it counts
/// that one's calls among its own, and keeps where all ranks can read it which calls each has begun
/// and completed.
pub trait HostGroup: ProcessGroup {
    /// How long a call waits for other ranks.
    fn timeout(&self) -> Duration;

    /// Numbers a call that is made by other means, and notes that this rank begins it.
    fn begin(
        &mut self,
        operation: Operation,
        place: Option<Place>,
        root: Option<usize>,
    ) -> Result<Call>;

    /// Notes that all calls of this rank so far are done.
    fn completed(&mut self);

    /// An error where a peer is seen to have made another call than this rank at the same place of the
    /// order. Does not wait, and so does not see what peers are yet to do.
    fn compare(&self) -> Result<()>;

    /// An error where a peer has failed, so that `call` cannot be finished, and where
    /// [`compare`](Self::compare) has one.
    fn check(&self, call: &Call) -> Result<()>;

    /// Where every rank stands.
    fn records(&self) -> Records;
}

/// Hears of a rank's calls as they are begun and done, from the thread that makes them: to tell others
/// where the rank stands. It must return at once.
pub trait Witness: Send + Sync + Debug {
    /// A call begins.
    fn begun(&self, call: &Call);

    /// All calls up to this number are done.
    fn completed(&self, sequence: u64);
}
