//! A sink that may fall behind: what it cannot take at once is dropped and counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Records that wait for a slow sink; a few minutes of small steps.
const CAPACITY: usize = 1024;

/// Hands records to a sink on its own thread.
#[derive(Debug)]
pub(crate) struct Lossy<T> {
    sender: SyncSender<T>,
    thread: JoinHandle<()>,
    dropped: Arc<AtomicU64>,
}

impl<T: Send + 'static> Lossy<T> {
    /// Starts the thread; `sink` gets record after record.
    pub(crate) fn start(
        mut sink: impl FnMut(T) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(CAPACITY);
        let dropped = Arc::new(AtomicU64::new(0));
        let failed = Arc::clone(&dropped);
        let thread = std::thread::Builder::new()
            .name("metrics-lossy".to_owned())
            .spawn(move || {
                for record in receiver {
                    if sink(record).is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })?;
        Ok(Self {
            sender,
            thread,
            dropped,
        })
    }

    /// Gives the sink a record, or drops it. Never waits.
    pub(crate) fn push(&self, record: T) {
        if self.sender.try_send(record).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records dropped so far: the sink was behind, or failed.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until the sink has seen every record that was not dropped; gives the count of those
    /// that were.
    pub(crate) fn finish(self) -> u64 {
        drop(self.sender);
        // A sink that panicked has written what it could.
        let _ = self.thread.join();
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::{CAPACITY, Lossy};

    #[test]
    fn a_sink_that_hangs_holds_nobody_up_and_what_it_misses_is_counted() {
        let (release, gate) = channel::<()>();
        let (seen, sight) = channel();
        let lossy = Lossy::start(move |record: usize| {
            seen.send(record).unwrap();
            let _ = gate.recv();
            Ok(())
        });
        let lossy = lossy.unwrap();
        lossy.push(0);
        assert_eq!(sight.recv().unwrap(), 0);
        // The sink hangs in record 0. As many as the channel holds wait, and the rest is dropped.
        (1..10 * CAPACITY).for_each(|record| lossy.push(record));
        let dropped = 9 * CAPACITY - 1;
        assert_eq!(lossy.dropped() as usize, dropped);
        drop(release);
        assert_eq!(lossy.finish() as usize, dropped);
        assert!(sight.iter().eq(1..=CAPACITY));
    }

    #[test]
    fn what_a_sink_fails_to_write_is_counted() {
        let lossy = Lossy::start(|record: u8| {
            if record.is_multiple_of(2) {
                Ok(())
            } else {
                Err(std::io::ErrorKind::StorageFull.into())
            }
        });
        let lossy = lossy.unwrap();
        (0..10).for_each(|record| lossy.push(record));
        assert_eq!(lossy.finish(), 5);
    }
}
