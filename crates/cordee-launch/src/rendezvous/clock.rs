//! Time that counts only while somebody watches: a process that was suspended for an hour has not waited
//! for anybody in that hour.

use std::time::{Duration, Instant};

/// Time since it was made, as far as it was watched.
#[derive(Debug)]
pub(super) struct Clock {
    counted: Duration,
    last: Instant,
    /// The most that one pause between two looks counts for.
    most: Duration,
}

impl Clock {
    /// For who looks every `tick`, as far as the system lets it.
    pub(super) fn new(tick: Duration) -> Self {
        Self {
            counted: Duration::ZERO,
            last: Instant::now(),
            most: tick * 4,
        }
    }

    /// What time it is.
    pub(super) fn look(&mut self) -> Duration {
        self.look_at(Instant::now())
    }

    fn look_at(&mut self, now: Instant) -> Duration {
        self.counted += now.saturating_duration_since(self.last).min(self.most);
        self.last = now;
        self.counted
    }
}

/// The longest pause between two looks at a [`Deadline`] that are meant to be.
const PAUSE: Duration = Duration::from_secs(2);

/// Until when something is waited for.
#[derive(Debug)]
pub(super) struct Deadline {
    clock: Clock,
    limit: Duration,
}

impl Deadline {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            clock: Clock::new(PAUSE),
            limit,
        }
    }

    /// The time that is left, or nothing.
    pub(super) fn left(&mut self) -> Option<Duration> {
        let left = self.limit.checked_sub(self.clock.look())?;
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_of_suspension_is_a_moment() {
        let mut clock = Clock::new(Duration::from_millis(100));
        let start = clock.last;
        let second = Duration::from_secs(1);
        for tick in 1..=10 {
            clock.look_at(start + second * tick / 10);
        }
        assert_eq!(clock.counted, second);
        clock.look_at(start + Duration::from_hours(1));
        assert_eq!(clock.counted, second + Duration::from_millis(400));
    }
}
