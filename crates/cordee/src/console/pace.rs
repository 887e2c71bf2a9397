//! How fast steps come, and which of them are worth a line.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cordee_protocol::StepProgress;

/// Steps whose mean is the present pace.
const WINDOW: usize = 50;
/// Longest silence of a console without a bar, as long as steps end.
const SILENCE: Duration = Duration::from_mins(1);

/// The recent pace of a run.
#[derive(Debug, Default)]
pub(super) struct Pace {
    started: bool,
    recent: VecDeque<f64>,
    shown: Option<Instant>,
}

impl Pace {
    /// Takes note of a step. The first one is left out of the pace: it warms up caches and memory.
    pub(super) fn note(&mut self, progress: &StepProgress) {
        if self.started {
            if self.recent.len() == WINDOW {
                self.recent.pop_front();
            }
            self.recent.push_back(progress.step_s);
        }
        self.started = true;
    }

    /// Seconds until the last step, if the pace is known.
    pub(super) fn eta(&self, progress: &StepProgress) -> Option<f64> {
        let left = progress.steps.saturating_sub(progress.step) as f64;
        let mean = self.recent.iter().sum::<f64>() / self.recent.len() as f64;
        if left == 0.0 {
            Some(0.0)
        } else {
            (!self.recent.is_empty()).then_some(left * mean)
        }
    }

    /// Whether a console without a bar shows this step, which is then counted as shown: the first
    /// one, the last one, those that are due, and one after a long silence.
    pub(super) fn show(&mut self, progress: &StepProgress, now: Instant) -> bool {
        let silent = self
            .shown
            .is_none_or(|shown| now.duration_since(shown) >= SILENCE);
        let show = silent || progress.due || progress.step == progress.steps;
        if show {
            self.shown = Some(now);
        }
        show
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::samples;

    fn step(step: u64, step_s: f64) -> StepProgress {
        StepProgress {
            step,
            step_s,
            due: false,
            ..samples::step()
        }
    }

    #[test]
    fn the_pace_is_the_mean_of_recent_steps_without_the_first() {
        let mut pace = Pace::default();
        pace.note(&step(1, 100.0));
        assert_eq!(pace.eta(&step(1, 100.0)), None);
        pace.note(&step(2, 1.0));
        pace.note(&step(3, 3.0));
        assert_eq!(pace.eta(&step(3, 3.0)), Some(2.0 * 397.0));
        for index in 4..=300 {
            pace.note(&step(index, 0.5));
        }
        assert_eq!(pace.eta(&step(300, 0.5)), Some(50.0));
        assert_eq!(pace.eta(&step(400, 0.5)), Some(0.0));
    }

    #[test]
    fn the_first_the_last_the_due_and_one_a_minute_are_shown() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut show = |index, due, second| {
            let progress = StepProgress {
                due,
                ..step(index, 1.0)
            };
            pace.show(&progress, start + Duration::from_secs(second))
        };
        assert!(show(1, false, 0));
        assert!(!show(2, false, 1));
        assert!(show(10, true, 10));
        assert!(!show(11, false, 69));
        assert!(show(12, false, 70));
        assert!(!show(13, false, 71));
        assert!(show(400, false, 72));
    }
}
