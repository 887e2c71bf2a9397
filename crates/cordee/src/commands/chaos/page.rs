//! What became of a run under faults, as people and programs read it.

use std::fmt::Write as _;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

use super::{compare::Compared, kind::FaultKind, needs::Skipped, schedule::Fault, trial::Verdict};

/// A fault, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Told {
    #[serde(flatten)]
    pub(super) fault: Fault,
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

/// Everything there is to tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) seed: u64,
    /// Machines, where there are several.
    pub(super) hosts: Option<usize>,
    /// A kind that was skipped is a failure.
    pub(super) strict: bool,
    pub(super) skipped: Vec<Skipped>,
    pub(super) faults: Vec<Told>,
    /// Faults that the run did not come to.
    pub(super) not_injected: usize,
    /// Why there is nothing to compare.
    pub(super) given_up: Option<String>,
    pub(super) steps: Option<Compared>,
    pub(super) tensors: Option<Compared>,
    /// What was left behind that should be gone.
    pub(super) left: Vec<String>,
    /// How often ranks were started.
    pub(super) attempts: usize,
    /// Share of the time that trained.
    pub(super) effective: Option<f64>,
    pub(super) undisturbed_s: f64,
    pub(super) disturbed_s: f64,
}

impl Report {
    pub(super) fn passed(&self) -> bool {
        let equal = |compared: &Option<Compared>| compared.as_ref().is_some_and(Compared::is_equal);
        self.faults.iter().all(|told| told.verdict.right)
            && self.not_injected == 0
            && self.given_up.is_none()
            && equal(&self.steps)
            && equal(&self.tensors)
            && self.left.is_empty()
            && (!self.strict || self.skipped.is_empty())
    }

    /// Why it did not pass, in the order in which it happened.
    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.strict && !self.skipped.is_empty() {
            let kinds: Vec<_> = self.skipped.iter().map(|it| it.kind.name()).collect();
            failures.push(format!("skipped, against --strict: {}", kinds.join(", ")));
        }
        for told in self.faults.iter().filter(|told| !told.verdict.right) {
            let Fault { number, kind, .. } = told.fault;
            failures.push(format!(
                "fault {number}, {}: {}",
                kind.name(),
                told.verdict.words
            ));
        }
        failures.extend(self.given_up.clone());
        if self.not_injected > 0 {
            failures.push(format!("{} faults were not injected", self.not_injected));
        }
        for compared in [&self.steps, &self.tensors].into_iter().flatten() {
            failures.extend(compared.differences.iter().cloned());
            let more = compared.different - compared.differences.len();
            if more > 0 {
                failures.push(format!("{more} more differences"));
            }
        }
        failures.extend(self.left.iter().map(|left| format!("left behind: {left}")));
        failures
    }
}

/// For people: a line for each fault, what was skipped, and the sum of it.
pub(super) fn table(report: &Report) -> String {
    let number = report.faults.len().to_string().len();
    let width = |column: &dyn Fn(&Told) -> usize, least| {
        let widths = report.faults.iter().map(column);
        widths.chain([least]).max().unwrap_or(least)
    };
    let step = width(&|told| told.verdict.step.to_string().len(), 4);
    let fault = width(&|told| told.fault.kind.name().len(), 5);
    let verdict = width(&|told| told.verdict.words.chars().count(), 7).min(72);
    let host = |text: &str| match report.hosts {
        None => String::new(),
        Some(_) => format!("{text:>4}  "),
    };
    let mut page = format!(
        "{:>number$}  {:>step$}  {:fault$}  {}rank  {:verdict$}  recovered in\n",
        "#",
        "step",
        "fault",
        host("host"),
        "verdict"
    );
    for told in &report.faults {
        let rank = if told.fault.kind.has_rank() {
            told.fault.rank.to_string()
        } else {
            "-".to_owned()
        };
        let recovery = told
            .verdict
            .recovery_s
            .map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.2} s"));
        let wrong = if told.verdict.right { "" } else { "  WRONG" };
        let _ = writeln!(
            page,
            "{:>number$}  {:>step$}  {:fault$}  {}{rank:>4}  {:verdict$}  {recovery:>12}{wrong}",
            told.fault.number,
            told.verdict.step,
            told.fault.kind.name(),
            host(
                &told
                    .fault
                    .host
                    .map_or_else(|| "-".to_owned(), |it| it.to_string())
            ),
            told.verdict.words,
        );
    }
    page.push('\n');
    page.push_str(&medians(report));
    for Skipped { kind, why } in &report.skipped {
        let _ = writeln!(page, "skipped: {}: {why}", kind.name());
    }
    if let Some(effective) = report.effective {
        let _ = writeln!(
            page,
            "{} attempts, {:.0} % of their time trained; {:.0} s, undisturbed {:.0} s; seed {}",
            report.attempts,
            100.0 * effective,
            report.disturbed_s,
            report.undisturbed_s,
            report.seed,
        );
    }
    page + &last_line(report)
}

/// How long it took to come through faults of a kind.
#[derive(Debug, Serialize)]
struct Recovery {
    kind: FaultKind,
    faults: usize,
    median_s: f64,
    most_s: f64,
}

/// Of each kind, in their order.
fn recoveries(report: &Report) -> Vec<Recovery> {
    let of = |kind: &FaultKind| {
        let told = report.faults.iter().filter(|it| it.fault.kind == *kind);
        let mut seconds: Vec<f64> = told.filter_map(|it| it.verdict.recovery_s).collect();
        seconds.sort_by(f64::total_cmp);
        Some(Recovery {
            kind: *kind,
            faults: seconds.len(),
            median_s: *seconds.get(seconds.len() / 2)?,
            most_s: *seconds.last()?,
        })
    };
    FaultKind::value_variants().iter().filter_map(of).collect()
}

fn medians(report: &Report) -> String {
    let recoveries = recoveries(report);
    let width = recoveries.iter().map(|it| it.kind.name().len());
    let width = width.max().unwrap_or(0).max(5);
    let mut text = format!("{:width$}  faults   median     most\n", "fault");
    for it in &recoveries {
        let _ = writeln!(
            text,
            "{:width$}  {:>6}  {:>5.2} s  {:>5.2} s",
            it.kind.name(),
            it.faults,
            it.median_s,
            it.most_s
        );
    }
    if recoveries.is_empty() {
        return String::new();
    }
    text.push('\n');
    text
}

fn last_line(report: &Report) -> String {
    let injected = report.faults.len();
    let right = report.faults.iter().filter(|it| it.verdict.right).count();
    let count = |compared: &Option<Compared>| compared.as_ref().map_or(0, |it| it.count);
    if report.passed() {
        return format!(
            "{injected} faults, each named and recovered from; {} steps and {} tensors are the same to the bit; no process is left\n",
            count(&report.steps),
            count(&report.tensors),
        );
    }
    format!(
        "FAILED, {right} of {} faults named and recovered from: {}\n",
        injected + report.not_injected,
        report.failures().join("; ")
    )
}

/// For programs.
pub(super) fn as_json(report: &Report) -> Value {
    json!({
        "passed": report.passed(),
        "strict": report.strict,
        "seed": report.seed,
        "hosts": report.hosts,
        "recovery": recoveries(report),
        "failures": report.failures(),
        "faults": report.faults,
        "not_injected": report.not_injected,
        "skipped": report.skipped,
        "steps": report.steps,
        "tensors": report.tensors,
        "left": report.left,
        "attempts": report.attempts,
        "effective": report.effective,
        "undisturbed_s": report.undisturbed_s,
        "disturbed_s": report.disturbed_s,
    })
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn told(number: usize, kind: FaultKind, words: &str, right: bool) -> Told {
        Told {
            fault: Fault {
                number,
                kind,
                step: 10 * number as u64,
                rank: 2,
                host: None,
                pause: 0.5,
                seed: 7,
            },
            verdict: Verdict {
                step: 10 * number as u64 + 1,
                words: words.to_owned(),
                right,
                recovery_s: Some(1.25 * number as f64),
            },
        }
    }

    fn good() -> Report {
        let same = |count| {
            Some(Compared {
                count,
                ..Compared::default()
            })
        };
        Report {
            seed: 3,
            skipped: vec![Skipped {
                kind: FaultKind::FullDisk,
                why: "a tmpfs cannot be mounted: Operation not permitted".to_owned(),
            }],
            faults: vec![
                told(1, FaultKind::Kill, "rank 2: signal 9", true),
                told(2, FaultKind::LauncherKill, "lost, no rank left", true),
                told(
                    3,
                    FaultKind::CorruptedCheckpoint,
                    "rank 2: signal 9, back to step 20",
                    true,
                ),
            ],
            steps: same(320),
            tensors: same(41),
            attempts: 4,
            effective: Some(0.713),
            undisturbed_s: 41.2,
            disturbed_s: 58.9,
            ..Report::default()
        }
    }

    #[test]
    fn a_run_that_came_through() {
        let report = good();
        assert!(report.passed());
        assert_snapshot!(table(&report), @"
        #  step  fault                 rank  verdict                            recovered in
        1    11  kill                     2  rank 2: signal 9                         1.25 s
        2    21  launcher kill            -  lost, no rank left                       2.50 s
        3    31  corrupted checkpoint     2  rank 2: signal 9, back to step 20        3.75 s

        fault                 faults   median     most
        kill                       1   1.25 s   1.25 s
        launcher kill              1   2.50 s   2.50 s
        corrupted checkpoint       1   3.75 s   3.75 s

        skipped: full disk: a tmpfs cannot be mounted: Operation not permitted
        4 attempts, 71 % of their time trained; 59 s, undisturbed 41 s; seed 3
        3 faults, each named and recovered from; 320 steps and 41 tensors are the same to the bit; no process is left
        ");
    }

    #[test]
    fn a_run_that_did_not() {
        let mut report = good();
        report.strict = true;
        let wrong = "failed, rank 1: signal 9, should be rank 2: signal 9";
        report.faults[0] = told(1, FaultKind::Kill, wrong, false);
        report.faults[2].verdict = Verdict {
            recovery_s: None,
            words: "waited for the verdict, in vain for 60 s".to_owned(),
            right: false,
            ..report.faults[2].verdict.clone()
        };
        report.not_injected = 7;
        report.steps = Some(Compared {
            count: 320,
            different: 9,
            differences: vec!["step 12: loss is 2.5, undisturbed 2.25".to_owned()],
        });
        report.left = vec!["process 17 (cordee)".to_owned()];
        assert!(!report.passed());
        assert_snapshot!(table(&report), @"
        #  step  fault                 rank  verdict                                               recovered in
        1    11  kill                     2  failed, rank 1: signal 9, should be rank 2: signal 9        1.25 s  WRONG
        2    21  launcher kill            -  lost, no rank left                                          2.50 s
        3    31  corrupted checkpoint     2  waited for the verdict, in vain for 60 s                     never  WRONG

        fault          faults   median     most
        kill                1   1.25 s   1.25 s
        launcher kill       1   2.50 s   2.50 s

        skipped: full disk: a tmpfs cannot be mounted: Operation not permitted
        4 attempts, 71 % of their time trained; 59 s, undisturbed 41 s; seed 3
        FAILED, 1 of 10 faults named and recovered from: skipped, against --strict: full disk; fault 1, kill: failed, rank 1: signal 9, should be rank 2: signal 9; fault 3, corrupted checkpoint: waited for the verdict, in vain for 60 s; 7 faults were not injected; step 12: loss is 2.5, undisturbed 2.25; 8 more differences; left behind: process 17 (cordee)
        ");
        let json = as_json(&report);
        assert_eq!(json["passed"], false);
        assert_eq!(json["faults"][1]["kind"], "launcher-kill");
        assert_eq!(json["failures"].as_array().unwrap().len(), 7);
    }

    #[test]
    fn anything_that_is_wrong_fails() {
        assert!(good().passed());
        let spoil: [fn(&mut Report); 7] = [
            |it| it.strict = true,
            |it| it.faults[1].verdict.right = false,
            |it| it.not_injected = 1,
            |it| it.given_up = Some("it hangs".to_owned()),
            |it| it.steps = None,
            |it| it.tensors = Some(Compared::default()),
            |it| it.left = vec!["process 17 (cordee)".to_owned()],
        ];
        for spoil in spoil {
            let mut report = good();
            spoil(&mut report);
            assert!(!report.passed(), "{report:?}");
            assert!(table(&report).contains("FAILED"));
        }
    }
}
