//! Findings held against thresholds.

use cordee_protocol::{Check, CheckReport, Finding};
use serde::Serialize;

use super::{
    catalog::{Stage, fix, quantity},
    thresholds::{Bound, Bounds},
};

/// What is said of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Measured, and within its threshold or without one.
    Ok,
    /// Nobody knows.
    Unknown,
    /// Broken, or past its threshold.
    Bad,
}

/// A check and what is said of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Judged {
    pub(super) stage: Stage,
    pub(super) check: Check,
    /// Of which of several.
    pub(super) of: Option<String>,
    pub(super) verdict: Verdict,
    /// In the unit of the check; absent where it was not measured, and where there is no limit.
    pub(super) value: Option<f64>,
    /// With its unit and all else that is to be known.
    pub(super) measured: Option<String>,
    /// In words; absent where there is none.
    pub(super) threshold: Option<String>,
    /// Why it is bad or unknown.
    pub(super) why: Option<String>,
    /// What to try where it is bad.
    pub(super) fix: Option<&'static str>,
}

impl Judged {
    /// What it is called in one line.
    pub(super) fn name(&self) -> String {
        match &self.of {
            Some(of) => format!("{} of {of}", self.check),
            None => self.check.to_string(),
        }
    }
}

/// Judges all, in the order of their stages.
pub(super) fn judge(reports: &[CheckReport], bounds: Bounds<'_>, ranks: usize) -> Vec<Judged> {
    let mut judged: Vec<Judged> = reports
        .iter()
        .map(|report| {
            let of_processor = report.of.as_ref().is_some_and(|of| of.starts_with("rank"));
            let bound = bounds.of(report.check, ranks, of_processor);
            one(report, bound, median(reports, report.check))
        })
        .collect();
    judged.sort_by_key(|it| (it.stage, it.check, number(it.of.as_deref())));
    judged
}

/// The 3 of `GPU 3`.
fn number(of: Option<&str>) -> Option<usize> {
    of?.rsplit(' ').next()?.parse().ok()
}

/// Of a check that was measured twice or more.
fn median(reports: &[CheckReport], check: Check) -> Option<f64> {
    let mut values: Vec<f64> = reports
        .iter()
        .filter(|report| report.check == check)
        .filter_map(|report| match report.finding {
            Finding::Measured { value, .. } if !value.is_nan() => Some(value),
            _ => None,
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 | 1 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn one(report: &CheckReport, bound: Option<Bound>, median: Option<f64>) -> Judged {
    let check = report.check;
    let mut judged = Judged {
        stage: Stage::of(check),
        check,
        of: report.of.clone(),
        verdict: Verdict::Ok,
        value: None,
        measured: None,
        threshold: bound.map(|bound| words(check, bound, median)),
        why: None,
        fix: None,
    };
    match &report.finding {
        Finding::Measured { value, detail } => {
            judged.value = value.is_finite().then_some(*value);
            let quantity = quantity(check, *value);
            judged.measured = Some(match detail {
                Some(detail) => format!("{quantity} ({detail})"),
                None => quantity,
            });
            judged.why = bound.and_then(|bound| past(check, *value, bound, median));
            if value.is_nan() {
                judged.why = Some("it is not a number".to_owned());
            }
            if judged.why.is_some() {
                judged.verdict = Verdict::Bad;
            }
        }
        Finding::Broken { why } => {
            judged.verdict = Verdict::Bad;
            judged.why = Some(why.clone());
        }
        Finding::Unknown { why } => {
            judged.verdict = Verdict::Unknown;
            judged.why = Some(why.clone());
        }
    }
    if judged.verdict == Verdict::Bad {
        judged.fix = Some(fix(check));
    }
    judged
}

/// A bound in words.
fn words(check: Check, bound: Bound, median: Option<f64>) -> String {
    let of_median = bound.of_median.filter(|_| median.is_some());
    let parts = [
        bound.at_least.map(|least| match least {
            f64::INFINITY => "unlimited".to_owned(),
            _ => format!("at least {}", quantity(check, least)),
        }),
        bound
            .at_most
            .map(|most| format!("at most {}", quantity(check, most))),
        of_median.map(|share| format!("{share} of the median")),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "nothing to compare with".to_owned()
    } else {
        parts.join(", ")
    }
}

/// Why a number is past a bound.
fn past(check: Check, value: f64, bound: Bound, median: Option<f64>) -> Option<String> {
    let shown = quantity(check, value);
    if let Some(least) = bound.at_least.filter(|least| value < *least) {
        return Some(format!("{shown} < {}", quantity(check, least)));
    }
    if let Some(most) = bound.at_most.filter(|most| value > *most) {
        return Some(format!("{shown} > {}", quantity(check, most)));
    }
    let (share, median) = (bound.of_median?, median?);
    (value < share * median).then(|| {
        format!(
            "{shown} is {:.2} of the median, {}",
            value / median,
            quantity(check, median)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(ordinal: usize, value: f64) -> CheckReport {
        CheckReport {
            check: Check::MatmulBf16,
            of: Some(format!("GPU {ordinal}")),
            finding: Finding::measured(value),
        }
    }

    #[test]
    fn a_device_that_is_slower_than_its_peers_is_bad() {
        let reports: Vec<_> = [700.0, 690.0, 701.0, 520.0]
            .into_iter()
            .enumerate()
            .map(|(ordinal, value)| gpu(ordinal, value))
            .collect();
        let bound = Bound {
            of_median: Some(0.9),
            ..Bound::default()
        };
        let median = median(&reports, Check::MatmulBf16);
        assert_eq!(median, Some(695.0));
        let verdicts: Vec<_> = reports
            .iter()
            .map(|report| one(report, Some(bound), median))
            .collect();
        let bad: Vec<_> = verdicts.iter().filter_map(|it| it.why.clone()).collect();
        assert_eq!(bad, ["520 TFLOP/s is 0.75 of the median, 695 TFLOP/s"]);
        assert_eq!(verdicts[3].verdict, Verdict::Bad);
        // One device alone has nobody to be compared with.
        let alone = one(
            &reports[3],
            Some(bound),
            super::median(&reports[3..], Check::MatmulBf16),
        );
        assert_eq!(alone.verdict, Verdict::Ok);
    }

    #[test]
    fn what_is_not_a_number_is_never_ok() {
        for bound in [
            None,
            Some(Bound {
                at_most: Some(1.0),
                ..Bound::default()
            }),
        ] {
            assert_eq!(one(&gpu(0, f64::NAN), bound, None).verdict, Verdict::Bad);
        }
    }
}
