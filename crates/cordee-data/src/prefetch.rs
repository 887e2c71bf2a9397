//! Batches read ahead on a thread of their own.
//!
//! What lies in the queue is no part of any checkpoint: the step says which samples come next.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use crate::{Batch, DataError, Loader};

/// An iterator over batches that are read before they are asked for. Ends with the ranges, or after
/// the first error; dropping it stops the thread.
#[derive(Debug)]
pub struct Prefetch {
    batches: Option<Receiver<Result<Batch, DataError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts reading the batches of `ranges`, in their order, at most `depth` ahead of the one
    /// being asked for.
    pub fn start(
        loader: Arc<Loader>,
        ranges: impl Iterator<Item = Range<u64>> + Send + 'static,
        depth: usize,
    ) -> Result<Self, DataError> {
        let (sender, batches) = sync_channel(depth);
        let read_ahead = move || {
            for range in ranges {
                let batch = loader.read(range);
                let failed = batch.is_err();
                // Nobody listens any more once the iterator is dropped.
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let thread = thread::Builder::new()
            .name("cordee-prefetch".to_owned())
            .spawn(read_ahead)?;
        Ok(Self {
            batches: Some(batches),
            thread: Some(thread),
        })
    }
}

impl Iterator for Prefetch {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.batches.as_ref()?.recv() {
            return Some(batch);
        }
        // The thread is done. A panic there must not look like the end of the data.
        self.batches = None;
        let panic = self.thread.take()?.join().err()?;
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Some(Err(DataError::PrefetchDied(
            message.unwrap_or_else(|| "it panicked".to_owned()),
        )))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // First, so that a thread waiting to send wakes up.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
