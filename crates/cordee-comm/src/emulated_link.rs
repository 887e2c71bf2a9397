//! A group as if its ranks were joined by a slower link, to see what that would cost.

use std::{ops::Range, thread, time::Duration};

use cordee_memory::{Buffer, DType};

use crate::{ProcessGroup, Result};

/// Another group whose collectives on buffers of the host take longer: by the time that the bytes
/// which a ring sends and receives for them would take over the link.
///
/// The time is slept, so that threads beside the one that waits have all of the processor, as they
/// have while a network card works.
pub struct EmulatedLink<'a> {
    group: &'a mut dyn ProcessGroup,
    bytes_per_s: f64,
    slept: f64,
}

impl<'a> EmulatedLink<'a> {
    /// `group` over a link of so many bytes per second in each direction.
    pub fn new(group: &'a mut dyn ProcessGroup, bytes_per_s: f64) -> Self {
        Self {
            group,
            bytes_per_s,
            slept: 0.0,
        }
    }

    /// Sleeps for as long as the link takes for `share` of the ring's bytes of `range`.
    fn send(&mut self, buffer: &Buffer, range: &Range<usize>, share: f64) {
        let world = self.group.world_size() as f64;
        let bytes = (range.len() * buffer.dtype().size_in_bytes()) as f64;
        let seconds = share * bytes * (world - 1.0) / world / self.bytes_per_s;
        thread::sleep(Duration::from_secs_f64(seconds));
        self.slept += seconds;
    }
}

impl ProcessGroup for EmulatedLink<'_> {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn world_size(&self) -> usize {
        self.group.world_size()
    }

    fn allocate(&mut self, dtype: DType, len: usize) -> Result<Buffer> {
        self.group.allocate(dtype, len)
    }

    fn all_reduce(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()> {
        // Each element goes round twice: to be summed, and to be told.
        self.send(buffer, &range, 2.0);
        self.group.all_reduce(buffer, range)
    }

    fn reduce_scatter(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<Range<usize>> {
        self.send(buffer, &range, 1.0);
        self.group.reduce_scatter(buffer, range)
    }

    fn all_gather(&mut self, buffer: &mut Buffer, range: Range<usize>) -> Result<()> {
        self.send(buffer, &range, 1.0);
        self.group.all_gather(buffer, range)
    }

    fn broadcast(&mut self, buffer: &mut Buffer, range: Range<usize>, root: usize) -> Result<()> {
        self.send(buffer, &range, 1.0);
        self.group.broadcast(buffer, range, root)
    }

    fn fence(&mut self) -> Result<()> {
        self.group.fence()
    }

    fn wait(&mut self) -> Result<()> {
        self.group.wait()
    }

    fn barrier(&mut self) -> Result<()> {
        self.group.barrier()
    }

    fn sum_scalars(&mut self, values: &mut [f64]) -> Result<()> {
        self.group.sum_scalars(values)
    }

    fn gather_bytes(&mut self, value: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.group.gather_bytes(value)
    }

    fn fail(&mut self, reason: &str) {
        self.group.fail(reason);
    }

    fn seconds(&self) -> f64 {
        self.group.seconds() + self.slept
    }
}
