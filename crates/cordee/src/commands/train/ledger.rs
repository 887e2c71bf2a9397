//! Where the time of an attempt went.

use std::time::Duration;

use cordee_metrics::Ledger;
use cordee_protocol::{Phase, Status};

/// When an attempt began and ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// From the end of the attempt before, or from the start of the launcher, to the start of the ranks.
    pub(super) before: Duration,
    /// From the start of the ranks to now, or to the end of the last.
    pub(super) of_ranks: Duration,
    /// Whether an attempt failed before it in the same launch.
    pub(super) after_failure: bool,
}

/// How the attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its ranks run.
    Running,
    /// They ended as they should.
    Ended,
    /// They did not: what was begun and not done is lost.
    Failed,
}

/// Deals the time of an attempt out by what rank 0 said it did. What it did not say is the start, or of
/// an attempt that failed the time in which it was down.
pub(super) fn ledger(rank: &Status, span: Span, standing: Standing) -> Ledger {
    let mut phases = rank.phases;
    let open = rank.phase_for.min(span.of_ranks);
    if standing == Standing::Running {
        phases[rank.phase as usize] += open;
    }
    let of = |phase: Phase| phases[phase as usize].as_secs_f64();
    let mut ledger = Ledger {
        training_s: of(Phase::Training),
        evaluation_s: of(Phase::Evaluating) + of(Phase::Concluding),
        start_s: of(Phase::Starting),
        load_s: of(Phase::Loading),
        save_s: of(Phase::Saving),
        recomputation_s: of(Phase::Recomputing),
        down_s: 0.0,
    };
    let rest = (span.of_ranks.as_secs_f64() - ledger.total_s()).max(0.0);
    if standing == Standing::Failed {
        let lost = open.as_secs_f64().min(rest);
        ledger.down_s += lost;
        ledger.start_s += rest - lost;
    } else {
        ledger.start_s += rest;
    }
    if span.after_failure {
        ledger.down_s += span.before.as_secs_f64();
    } else {
        ledger.start_s += span.before.as_secs_f64();
    }
    ledger
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: Phase, phase_for: u64, spent: &[(Phase, u64)]) -> Status {
        let mut phases = [Duration::ZERO; Phase::ALL.len()];
        for &(phase, seconds) in spent {
            phases[phase as usize] = Duration::from_secs(seconds);
        }
        Status {
            phase,
            step: 7,
            phase_for: Duration::from_secs(phase_for),
            quiet_for: Duration::ZERO,
            call: None,
            phases,
        }
    }

    fn span(before: u64, of_ranks: u64, after_failure: bool) -> Span {
        Span {
            before: Duration::from_secs(before),
            of_ranks: Duration::from_secs(of_ranks),
            after_failure,
        }
    }

    #[test]
    fn a_run_that_ends_accounts_for_every_second() {
        let spent = [
            (Phase::Starting, 1),
            (Phase::Loading, 2),
            (Phase::Training, 80),
            (Phase::Saving, 4),
            (Phase::Evaluating, 6),
        ];
        let found = ledger(
            &status(Phase::Concluding, 1, &spent),
            span(3, 95, false),
            Standing::Ended,
        );
        let expected = Ledger {
            training_s: 80.0,
            evaluation_s: 6.0,
            // What came before the ranks, their start, and two seconds that none of them spoke of.
            start_s: 3.0 + 1.0 + 2.0,
            load_s: 2.0,
            save_s: 4.0,
            recomputation_s: 0.0,
            down_s: 0.0,
        };
        assert_eq!(found, expected);
        assert!((found.total_s() - 98.0).abs() < 1e-9);
    }

    #[test]
    fn what_a_failed_attempt_did_not_finish_is_time_down() {
        let spent = [
            (Phase::Starting, 1),
            (Phase::Recomputing, 5),
            (Phase::Training, 20),
        ];
        let found = ledger(
            &status(Phase::Training, 62, &spent),
            span(2, 90, true),
            Standing::Failed,
        );
        assert_eq!((found.training_s, found.recomputation_s), (20.0, 5.0));
        assert_eq!((found.down_s, found.start_s), (64.0, 3.0));
        assert!((found.total_s() - 92.0).abs() < 1e-9);
    }

    #[test]
    fn what_runs_still_counts_as_what_it_is() {
        let spent = [(Phase::Starting, 1)];
        let found = ledger(
            &status(Phase::Training, 9, &spent),
            span(0, 10, false),
            Standing::Running,
        );
        assert_eq!((found.training_s, found.start_s), (9.0, 1.0));
        let unheard = status(Phase::Unknown, 0, &[]);
        let found = ledger(&unheard, span(0, 10, false), Standing::Running);
        assert!((found.start_s - 10.0).abs() < 1e-9);
    }
}
