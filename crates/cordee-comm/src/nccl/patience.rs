//! Waiting for what nobody wakes us for.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a rank looks again and again before it begins to sleep.
const LOOKING: Duration = Duration::from_micros(100);

/// The longest sleep: what a device may stand idle for before the host goes on.
const SLICE: Duration = Duration::from_micros(200);

/// The most that one pause counts for, whatever it took. A job that a scheduler suspends for an hour has
/// not waited for anyone in that hour.
const MOST: Duration = Duration::from_secs(1);

/// A deadline, and what has been waited towards it.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    waited: Duration,
    last: Instant,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            waited: Duration::ZERO,
            last: Instant::now(),
        }
    }

    /// Waits a little, or tells how long it was once the deadline is over.
    pub(super) fn pause(&mut self) -> Result<(), Duration> {
        let now = Instant::now();
        self.waited += now.duration_since(self.last).min(MOST);
        self.last = now;
        if self.waited >= self.limit {
            return Err(self.waited);
        }
        if self.waited < LOOKING {
            thread::yield_now();
        } else {
            thread::sleep((self.waited / 8).clamp(LOOKING / 4, SLICE));
        }
        Ok(())
    }
}
