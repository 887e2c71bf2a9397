//! Finds out that nothing happens any more.
//!
//! Looks at the status pages now and then, and at nothing else: a look costs a few loads. A rank hangs
//! when its page has not changed for longer than the deadline of what it is doing. What that means, and
//! who is to blame, is for [`crate::hang`] to find.
//!
//! Time counts only while it is looked: a launcher that was suspended for an hour, with its ranks or
//! without, has not waited in that hour.

use std::time::{Duration, Instant};

use cordee_protocol::{Phase, StatusPage};

use crate::ProcessState;

/// Longest time between two looks.
const LONGEST_TICK: Duration = Duration::from_millis(250);
/// A step may take this many times what nearly all steps of the run take.
const FACTOR: u32 = 5;
/// Steps of a process that are no measure of the others, once there are others.
const WARM_UP: u64 = 5;
/// Steps that the deadline is learned from.
const LEARNED: usize = 256;

/// How long ranks may get nothing done.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Within a step, at least; the run's own steps may make it longer.
    pub step: Duration,
    /// In anything else, and before any step is done.
    pub phase: Duration,
}

/// What a run has shown of its steps. It is kept from attempt to attempt.
#[derive(Clone, Debug, Default)]
pub struct StepTimes {
    warm_up: Vec<Duration>,
    usual: Vec<Duration>,
    next: usize,
}

impl StepTimes {
    /// Takes note of a step; `done` is how many steps the process has done, this one included.
    fn note(&mut self, done: u64, time: Duration) {
        if done <= WARM_UP {
            self.warm_up.push(time);
            self.warm_up.truncate(WARM_UP as usize);
        } else if self.usual.len() < LEARNED {
            self.usual.push(time);
        } else {
            self.usual[self.next] = time;
            self.next = (self.next + 1) % LEARNED;
        }
    }

    /// What 99 of 100 steps stay within; of the first steps where there are no others, and `None` where
    /// there are none at all.
    pub fn p99(&self) -> Option<Duration> {
        let mut times = if self.usual.is_empty() {
            self.warm_up.clone()
        } else {
            self.usual.clone()
        };
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        Some(times[(last * 99).div_ceil(100)])
    }

    /// How long a step may get nothing done.
    fn limit(&self, deadlines: &Deadlines) -> Duration {
        self.p99()
            .map_or(deadlines.phase, |p99| (p99 * FACTOR).max(deadlines.step))
    }
}

/// That a deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    /// The rank that has been quiet the longest of those past their deadline.
    pub(crate) rank: usize,
    /// How long.
    pub(crate) quiet: Duration,
    /// The deadline.
    pub(crate) limit: Duration,
    /// What 99 of 100 steps stay within, where the deadline comes of that.
    pub(crate) p99: Option<Duration>,
}

/// The watch over one launch.
#[derive(Debug)]
pub(crate) struct Watchdog {
    deadlines: Deadlines,
    pages: Vec<StatusPage>,
    times: StepTimes,
    ranks: Vec<Watched>,
    /// Time that was watched.
    clock: Duration,
    last_look: Instant,
    /// Steps that rank 0 had done at the last look, and the time it had spent in steps.
    steps: Option<(u64, u64, Duration)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    pulse: u64,
    /// On the watch's clock.
    changed: Duration,
}

impl Watchdog {
    pub(crate) fn new(deadlines: Deadlines, times: StepTimes, pages: Vec<StatusPage>) -> Self {
        Self {
            ranks: vec![Watched::default(); pages.len()],
            deadlines,
            pages,
            times,
            clock: Duration::ZERO,
            last_look: Instant::now(),
            steps: None,
        }
    }

    /// When the next look is due.
    pub(crate) fn next_look(&self) -> Instant {
        self.last_look + self.tick()
    }

    fn tick(&self) -> Duration {
        (self.deadlines.step.min(self.deadlines.phase) / 8).min(LONGEST_TICK)
    }

    /// What was learned of the run's steps.
    pub(crate) fn step_times(&self) -> &StepTimes {
        &self.times
    }

    /// Looks at all pages. `state` says of a rank how its process is, and is asked only when a deadline
    /// has passed.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        state: impl Fn(usize) -> ProcessState,
    ) -> Option<Expired> {
        let passed = now.saturating_duration_since(self.last_look);
        // Who was away longer than it meant to be did not watch meanwhile.
        self.clock += passed.min(2 * self.tick());
        self.last_look = now;
        self.learn();
        for (rank, page) in self.ranks.iter_mut().zip(&self.pages) {
            let pulse = page.pulse();
            if pulse != rank.pulse {
                *rank = Watched {
                    pulse,
                    changed: self.clock,
                };
            }
        }
        let expired = (0..self.ranks.len())
            .filter_map(|rank| self.expired(rank))
            .max_by_key(|expired| expired.quiet)?;
        let states: Vec<_> = (0..self.ranks.len()).map(state).collect();
        let alive = || states.iter().filter(|state| **state != ProcessState::Ended);
        // A rank that has ended says nothing more, and is heard of by other means.
        if states[expired.rank] == ProcessState::Ended {
            self.ranks[expired.rank].changed = self.clock;
            return None;
        }
        // All at once is what a scheduler or a person does, who will let them go on.
        if alive().count() > 1 && alive().all(|state| *state == ProcessState::Stopped) {
            for rank in &mut self.ranks {
                rank.changed = self.clock;
            }
            return None;
        }
        Some(expired)
    }

    fn expired(&self, rank: usize) -> Option<Expired> {
        let quiet = self.clock.saturating_sub(self.ranks[rank].changed);
        // The cheapest test first: this is asked a few times a second, for as long as the run lasts.
        if quiet < self.deadlines.step.min(self.deadlines.phase) {
            return None;
        }
        let status = self.pages[rank].read();
        let learned = status
            .phase
            .is_step()
            .then(|| self.times.limit(&self.deadlines));
        let limit = learned.unwrap_or(self.deadlines.phase);
        (quiet >= limit).then(|| Expired {
            rank,
            quiet,
            limit,
            p99: learned.and(self.times.p99()),
        })
    }

    /// Learns from rank 0 how long steps take: of several between two looks, their mean.
    fn learn(&mut self) {
        let Some(page) = self.pages.first() else {
            return;
        };
        let status = page.read();
        let spent =
            status.phases[Phase::Training as usize] + status.phases[Phase::Recomputing as usize];
        if !status.phase.is_step() {
            return;
        }
        match self.steps {
            None => {
                // Short steps are over before anybody looks: none of them took longer than all together.
                if !spent.is_zero() {
                    self.times.note(1, spent);
                }
                self.steps = Some((status.step, 0, spent));
            }
            Some((before, done, spent_before)) if status.step > before => {
                let steps = status.step - before;
                let done = done + steps;
                self.times
                    .note(done, (spent.saturating_sub(spent_before)) / steps as u32);
                self.steps = Some((status.step, done, spent));
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINES: Deadlines = Deadlines {
        step: Duration::from_secs(2),
        phase: Duration::from_secs(10),
    };

    /// A watch over two ranks, and a clock to move.
    struct Scene {
        pages: Vec<StatusPage>,
        watchdog: Watchdog,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let pages: Vec<_> = (0..2).map(|_| StatusPage::private()).collect();
            Self {
                watchdog: Watchdog::new(DEADLINES, StepTimes::default(), pages.clone()),
                pages,
                now: Instant::now(),
            }
        }

        /// Looks four times a second for so long; what was found, if anything.
        fn pass(&mut self, seconds: u64, state: ProcessState) -> Option<Expired> {
            (0..seconds * 4).find_map(|_| {
                self.now += Duration::from_millis(250);
                self.watchdog.look(self.now, |_| state)
            })
        }
    }

    #[test]
    fn the_first_step_has_the_longer_deadline_and_later_ones_their_own() {
        let mut scene = Scene::new();
        for page in &scene.pages {
            page.enter(Phase::Training, 1);
        }
        assert_eq!(scene.pass(9, ProcessState::Sleeping), None);
        let expired = scene.pass(2, ProcessState::Sleeping).unwrap();
        assert_eq!((expired.limit, expired.p99), (DEADLINES.phase, None));

        let mut scene = Scene::new();
        for step in 1..3 {
            for page in &scene.pages {
                page.enter(Phase::Training, step);
            }
            assert_eq!(scene.pass(1, ProcessState::Sleeping), None);
        }
        scene.pages[0].progress();
        // The steps took next to nothing on the clock of the pages.
        let expired = scene.pass(3, ProcessState::Sleeping).unwrap();
        assert_eq!((expired.rank, expired.limit), (1, DEADLINES.step));
        assert!(expired.p99.is_some());
    }

    #[test]
    fn steps_that_were_over_before_the_first_look_are_steps() {
        let mut scene = Scene::new();
        for step in 1..4 {
            for page in &scene.pages {
                page.enter(Phase::Training, step);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let expired = scene.pass(3, ProcessState::Sleeping).unwrap();
        assert_eq!(expired.limit, DEADLINES.step);
    }

    #[test]
    fn who_gets_something_done_does_not_hang() {
        let mut scene = Scene::new();
        for step in 1..20 {
            for page in &scene.pages {
                page.enter(Phase::Training, step);
            }
            assert_eq!(scene.pass(1, ProcessState::Sleeping), None);
        }
    }

    #[test]
    fn a_validation_is_no_step() {
        let mut scene = Scene::new();
        for step in 1..3 {
            for page in &scene.pages {
                page.enter(Phase::Training, step);
            }
            scene.pass(1, ProcessState::Sleeping);
        }
        for page in &scene.pages {
            page.enter(Phase::Evaluating, 3);
        }
        assert_eq!(scene.pass(9, ProcessState::Sleeping), None);
        assert!(scene.pass(2, ProcessState::Sleeping).is_some());
    }

    #[test]
    fn ranks_that_are_stopped_all_at_once_are_waited_for() {
        let mut scene = Scene::new();
        for page in &scene.pages {
            page.enter(Phase::Loading, 0);
        }
        assert_eq!(scene.pass(60, ProcessState::Stopped), None);
        assert!(scene.pass(11, ProcessState::Sleeping).is_some());
    }

    #[test]
    fn a_launcher_that_was_away_has_not_waited() {
        let mut scene = Scene::new();
        scene.pages[0].enter(Phase::Loading, 0);
        scene.now += Duration::from_hours(1);
        let found = scene.watchdog.look(scene.now, |_| ProcessState::Sleeping);
        assert_eq!(found, None);
    }

    #[test]
    fn a_long_step_raises_the_deadline() {
        let mut times = StepTimes::default();
        assert_eq!(times.limit(&DEADLINES), DEADLINES.phase);
        times.note(1, Duration::from_secs(30));
        assert_eq!(times.limit(&DEADLINES), Duration::from_secs(150));
        for done in 6..300 {
            times.note(done, Duration::from_millis(500));
        }
        assert_eq!(times.limit(&DEADLINES), Duration::from_millis(2500));
        for done in 300..400 {
            times.note(done, Duration::from_millis(100));
        }
        times.note(400, Duration::from_secs(2));
        times.note(401, Duration::from_secs(2));
        times.note(402, Duration::from_secs(2));
        assert_eq!(times.limit(&DEADLINES), Duration::from_secs(10));
    }
}
