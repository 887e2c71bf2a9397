//! Where the time of a run went, as text.

use std::fmt::Write as _;

use cordee_metrics::Ledger;

use super::numbers::{duration, percent};

/// The line that ends a run: the share of the time that trained, what took how long, and how long it
/// was. Parts that took nothing are left out.
pub(crate) fn goodput(ledger: &Ledger, attempts: usize) -> String {
    let shown: Vec<String> = ledger
        .parts()
        .into_iter()
        .filter(|(_, seconds)| is_something(*seconds))
        .map(|(name, seconds)| format!("{name} {}", short(seconds)))
        .collect();
    let mut text = format!("goodput {}", share(ledger));
    if !shown.is_empty() {
        text = format!("{text}  {}", shown.join(", "));
    }
    format!("{text}  ({})", whole(ledger, attempts))
}

/// The same as a table, in whose lines each part has its share.
pub(crate) fn goodput_table(ledger: &Ledger, attempts: usize) -> String {
    let total = ledger.total_s();
    let mut text = format!("{} of {}\n", share(ledger), whole(ledger, attempts));
    for (name, seconds) in ledger.parts() {
        if is_something(seconds) {
            let share = format!("{}%", percent(seconds, total));
            let _ = writeln!(text, "  {name:<13}  {:>6}  {share:>6}", short(seconds));
        }
    }
    text
}

/// The effective share of a ledger: `94.3%`, and `--` where there is nothing to have a share in.
pub(crate) fn share(ledger: &Ledger) -> String {
    let effective = ledger.effective();
    if effective.is_finite() {
        format!("{}%", percent(effective, 1.0))
    } else {
        "--".to_owned()
    }
}

/// `2m12s in 3 attempts`.
fn whole(ledger: &Ledger, attempts: usize) -> String {
    let noun = if attempts == 1 { "attempt" } else { "attempts" };
    format!("{} in {attempts} {noun}", short(ledger.total_s()))
}

/// Whether it would not be shown as nothing.
fn is_something(seconds: f64) -> bool {
    seconds >= 0.05
}

/// To the tenth of a second as long as that matters.
fn short(seconds: f64) -> String {
    if seconds < 59.95 {
        format!("{seconds:.1}s")
    } else {
        duration(seconds)
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn ledger() -> Ledger {
        Ledger {
            training_s: 125.2,
            evaluation_s: 1.2,
            start_s: 0.9,
            load_s: 0.1,
            save_s: 3.1,
            recomputation_s: 2.0,
            down_s: 1.1,
        }
    }

    #[test]
    fn every_part_is_told() {
        assert_snapshot!(goodput(&ledger(), 3), @"goodput 94.6%  training 2m05s, evaluation 1.2s, start 0.9s, load 0.1s, save 3.1s, recomputation 2.0s, down 1.1s  (2m14s in 3 attempts)");
        assert_snapshot!(goodput_table(&ledger(), 3), @"
        94.6% of 2m14s in 3 attempts
          training        2m05s   93.7%
          evaluation       1.2s    0.9%
          start            0.9s    0.7%
          load             0.1s    0.1%
          save             3.1s    2.3%
          recomputation    2.0s    1.5%
          down             1.1s    0.8%
        ");
    }

    #[test]
    fn parts_that_took_nothing_are_left_out() {
        let short = Ledger {
            training_s: 59.96,
            save_s: 0.04,
            ..Ledger::default()
        };
        assert_snapshot!(goodput(&short, 1), @"goodput 99.9%  training 1m00s  (1m00s in 1 attempt)");
        let long = Ledger {
            training_s: 200_000.0,
            down_s: 4000.0,
            ..Ledger::default()
        };
        assert_snapshot!(goodput(&long, 12), @"goodput 98.0%  training 2d07h, down 1h06m  (2d08h in 12 attempts)");
        let never = Ledger {
            start_s: 12.34,
            ..Ledger::default()
        };
        assert_snapshot!(goodput(&never, 2), @"goodput 0.0%  start 12.3s  (12.3s in 2 attempts)");
    }

    #[test]
    fn a_run_without_time_has_no_share() {
        assert_snapshot!(goodput(&Ledger::default(), 0), @"goodput --  (0.0s in 0 attempts)");
    }
}
