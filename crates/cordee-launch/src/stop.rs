//! Requests to stop, made from signal handlers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// How often someone asked the run to stop; clones share one count.
///
/// The first request lets every worker stop at a step boundary with a checkpoint. The second kills.
#[derive(Clone, Debug)]
pub struct StopRequests(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    count: AtomicUsize,
    /// Whether it is no person's wish but the end of an attempt.
    over: AtomicBool,
    /// An eventfd: written to wake whoever waits, because a signal handler must not take locks.
    bell: OwnedFd,
}

impl StopRequests {
    /// A count of 0.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(Shared {
            count: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            bell,
        })))
    }

    /// Asks once more. Safe to call from a signal handler: one atomic addition and one `write`.
    pub fn request(&self) {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        self.ring();
    }

    /// Asks so often that it is `count` times in all, for those who pass on what others were asked: two
    /// who were asked the same once do not make it twice. As safe as [`Self::request`].
    pub fn request_in_all(&self, count: usize) {
        if self.0.count.fetch_max(count, Ordering::SeqCst) < count {
            self.ring();
        }
    }

    /// Ends the workers at once, since the attempt is over elsewhere. A rank that had failed by itself
    /// before is the cause of it still.
    pub fn end(&self) {
        self.0.over.store(true, Ordering::SeqCst);
        self.request_in_all(2);
    }

    /// Whether [`Self::end`] was called.
    pub(crate) fn is_over(&self) -> bool {
        self.0.over.load(Ordering::SeqCst)
    }

    /// How often it was asked.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::SeqCst)
    }

    fn ring(&self) {
        // An eventfd refuses only what would overflow 64 bits.
        let _ = rustix::io::write(&self.0.bell, &1_u64.to_ne_bytes());
    }

    /// Calls `heard` after every ring until `done` is set and the bell rung once more.
    pub(crate) fn listen(&self, done: &AtomicBool, mut heard: impl FnMut()) {
        let mut rings = [0; 8];
        loop {
            match rustix::io::read(&self.0.bell, &mut rings) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            if done.load(Ordering::SeqCst) {
                return;
            }
            heard();
        }
    }

    /// Ends [`Self::listen`].
    pub(crate) fn dismiss(&self, done: &AtomicBool) {
        done.store(true, Ordering::SeqCst);
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_one_count_and_wake_the_listener() {
        let (requests, done) = (StopRequests::new().unwrap(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let clone = requests.clone();
            let listener = scope.spawn(|| {
                let mut heard = 0;
                requests.listen(&done, || {
                    heard = requests.count();
                    if heard == 2 {
                        requests.dismiss(&done);
                    }
                });
                heard
            });
            clone.request();
            // Somebody else was asked once, too.
            clone.request_in_all(1);
            clone.request();
            assert_eq!(listener.join().unwrap(), 2);
        });
    }
}
