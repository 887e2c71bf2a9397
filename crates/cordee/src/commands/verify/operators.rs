//! `cordee verify operators`: every operator of the device beside its plain reference.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::anyhow;
use cordee_config::ParallelConfig;
use cordee_protocol::{ExitCode, OperatorFinding, WorkerMessage};
use serde_json::{Value, json};

use crate::{
    args::VerifyOperatorsArgs,
    commands::ranks,
    console::Console,
    devices,
    failure::Failure,
    job::{Job, Task, threads_per_rank},
};

pub(super) fn run(args: &VerifyOperatorsArgs) -> Result<u8, Failure> {
    let precision = args.precision.precision();
    let job = Job {
        device: devices::device(args.device.choice(), precision, 1)?,
        precision: precision.into(),
        world_size: 1,
        across: None,
        threads: threads_per_rank(1),
        timeout: ParallelConfig::default().timeout,
        task: Task::Operators,
    };
    let told = ranks::ask(&job, "verify")?;
    let Some(WorkerMessage::Operators(report)) = told.into_iter().next() else {
        let error = anyhow!("rank 0 ended without a report");
        return Err(Failure::new(ExitCode::Failed, error));
    };
    let findings = report.findings;
    Console::print_data(&if args.json {
        format!("{}\n", as_json(&findings))
    } else {
        as_table(&findings)
    });
    Ok(if findings.iter().all(is_within_bound) {
        ExitCode::Done.code()
    } else {
        ExitCode::Failed.code()
    })
}

/// False for NaN.
fn is_within_bound(finding: &OperatorFinding) -> bool {
    finding.error <= finding.bound
}

fn as_json(findings: &[OperatorFinding]) -> Value {
    json!({
        "passed": findings.iter().all(is_within_bound),
        "findings": findings,
    })
}

fn as_table(findings: &[OperatorFinding]) -> String {
    let widest = |column: fn(&OperatorFinding) -> &str, title: &str| {
        let widths = findings.iter().map(|finding| column(finding).len());
        widths.chain([title.len()]).max().unwrap_or(0)
    };
    let operator = widest(|finding| &finding.operator, "operator");
    let case = widest(|finding| &finding.case, "case");
    let result = widest(|finding| &finding.result, "result");
    let mut page = format!(
        "{:operator$}  {:case$}  {:result$}    error    bound\n",
        "operator", "case", "result"
    );
    for finding in findings {
        let _ = writeln!(
            page,
            "{:operator$}  {:case$}  {:result$}  {:>7.1e}  {:>7.1e}{}",
            finding.operator,
            finding.case,
            finding.result,
            finding.error,
            finding.bound,
            if is_within_bound(finding) {
                ""
            } else {
                "   too far"
            }
        );
    }
    let operators: BTreeSet<_> = findings.iter().map(|finding| &finding.operator).collect();
    let far = findings.iter().filter(|finding| !is_within_bound(finding));
    let (operators, results, far) = (operators.len(), findings.len(), far.count());
    let _ = match far {
        0 => writeln!(page, "equal: {results} results of {operators} operators"),
        _ => writeln!(
            page,
            "different: {far} of {results} results of {operators} operators"
        ),
    };
    page
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn findings() -> Vec<OperatorFinding> {
        let finding = |operator: &str, case: &str, result: &str, error| OperatorFinding {
            operator: operator.to_owned(),
            case: case.to_owned(),
            result: result.to_owned(),
            error,
            bound: 2e-6,
        };
        vec![
            finding("rms_norm", "one token, 33 wide", "y", 8.13e-8),
            finding("rms_norm", "one token, 33 wide", "y without residual", 0.0),
            finding("linear", "261 tokens, 530 to 1030", "dweight", 4.2e-7),
        ]
    }

    #[test]
    fn results_stand_in_columns() {
        assert_snapshot!(as_table(&findings()), @"
        operator  case                     result                error    bound
        rms_norm  one token, 33 wide       y                    8.1e-8   2.0e-6
        rms_norm  one token, 33 wide       y without residual    0.0e0   2.0e-6
        linear    261 tokens, 530 to 1030  dweight              4.2e-7   2.0e-6
        equal: 3 results of 2 operators
        ");
    }

    #[test]
    fn what_is_too_far_is_marked_and_counted() {
        let mut findings = findings();
        findings[0].error = f64::NAN;
        findings[2].error = 3.1e-4;
        assert_snapshot!(as_table(&findings), @"
        operator  case                     result                error    bound
        rms_norm  one token, 33 wide       y                       NaN   2.0e-6   too far
        rms_norm  one token, 33 wide       y without residual    0.0e0   2.0e-6
        linear    261 tokens, 530 to 1030  dweight              3.1e-4   2.0e-6   too far
        different: 2 of 3 results of 2 operators
        ");
        assert_eq!(as_json(&findings)["passed"], false);
    }
}
