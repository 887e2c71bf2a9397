//! Does many reads at once: one thread with one read in flight leaves most of a disk idle.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

use crate::Result;

/// Reads in flight; each may hold a block in memory.
const READS: usize = 4;

/// Calls `work` for every job, on a few threads, until one fails. Each thread lends its own scratch
/// buffer to its jobs.
pub(crate) fn for_each<J: Send>(
    jobs: Vec<J>,
    work: impl Fn(&mut Vec<u8>, J) -> Result<()> + Sync,
) -> Result<()> {
    let threads = READS.min(jobs.len());
    let jobs = Mutex::new(jobs.into_iter());
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let mut scratch = Vec::new();
        while let Some(job) = next() {
            if let Err(error) = work(&mut scratch, job) {
                // Nobody takes up another job.
                while next().is_some() {}
                return Err(error);
            }
        }
        Ok(())
    };
    if threads <= 1 {
        return run();
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        (threads.into_iter())
            .find_map(|thread| thread.join().expect("a reading thread never panics").err())
            .map_or(Ok(()), Err)
    })
}
