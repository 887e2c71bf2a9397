//! `cordee verify collectives`: what ranks do together, held against what every one of them can tell.

use std::{fmt::Write as _, time::Duration};

use anyhow::anyhow;
use cordee_config::{ComputePrecision, TimeSpan};
use cordee_protocol::{CollectiveFinding, CollectivesReport, ExitCode, WorkerMessage};
use serde_json::{Value, json};

use crate::{
    args::VerifyCollectivesArgs,
    commands::{played, ranks},
    console::Console,
    devices,
    failure::Failure,
    job::{Job, Task, threads_per_rank},
};

pub(super) fn run(args: &VerifyCollectivesArgs) -> Result<u8, Failure> {
    let precision = ComputePrecision::F32;
    let job = Job {
        device: devices::device(args.device.choice(), precision, args.workers)?,
        precision: precision.into(),
        world_size: args.workers,
        across: played::across(args.workers, args.machines)?,
        threads: threads_per_rank(args.workers),
        timeout: TimeSpan(Duration::from_secs(args.timeout)),
        task: Task::VerifyCollectives,
    };
    let told = ranks::ask(&job, "verify")?;
    let Some(WorkerMessage::VerifiedCollectives(report)) = told.into_iter().next() else {
        let error = anyhow!("rank 0 ended without a report");
        return Err(Failure::new(ExitCode::Failed, error));
    };
    Console::print_data(&if args.json {
        format!("{}\n", as_json(&report, &job))
    } else {
        as_table(&report, &job)
    });
    Ok(if is_right(&report) {
        ExitCode::Done.code()
    } else {
        ExitCode::Failed.code()
    })
}

fn is_right(report: &CollectivesReport) -> bool {
    report
        .findings
        .iter()
        .all(|finding| finding.wrong.is_none())
}

fn as_json(report: &CollectivesReport, job: &Job) -> Value {
    json!({
        "device": job.device,
        "workers": job.world_size,
        "transport": report.transport,
        "passed": is_right(report),
        "findings": report.findings,
    })
}

fn as_table(report: &CollectivesReport, job: &Job) -> String {
    let findings = &report.findings;
    let widths = findings.iter().map(|finding| finding.case.len());
    let width = widths.chain(["collective".len()]).max().unwrap_or(0);
    let mut page = format!("{:width$}  type\n", "collective");
    for CollectiveFinding { case, dtype, wrong } in findings {
        let dtype = dtype.as_deref().unwrap_or("-");
        let _ = match wrong {
            None => writeln!(page, "{case:width$}  {dtype:<4}  right"),
            Some(wrong) => writeln!(page, "{case:width$}  {dtype:<4}  WRONG  {wrong}"),
        };
    }
    let wrong = findings.iter().filter(|finding| finding.wrong.is_some());
    let (cases, wrong) = (findings.len(), wrong.count());
    let (workers, device) = (job.world_size, job.device.name());
    let how = format!("{workers} workers on {device}, {}", report.transport);
    let _ = match wrong {
        0 => writeln!(page, "right: {cases} cases, {how}"),
        _ => writeln!(page, "wrong: {wrong} of {cases} cases, {how}"),
    };
    page
}

#[cfg(test)]
mod tests {
    use cordee_config::DeviceKind;
    use insta::assert_snapshot;

    use super::*;

    fn report(wrong: Option<&str>) -> (CollectivesReport, Job) {
        let finding = |case: &str, dtype: Option<&str>, wrong: Option<&str>| CollectiveFinding {
            case: case.to_owned(),
            dtype: dtype.map(str::to_owned),
            wrong: wrong.map(str::to_owned),
        };
        let report = CollectivesReport {
            transport: "NCCL 2.30.3".to_owned(),
            findings: vec![
                finding("all_reduce", Some("f32"), None),
                finding("all_reduce", Some("bf16"), wrong),
                finding("sum_scalars", None, None),
            ],
        };
        let job = Job {
            device: DeviceKind::Cuda,
            precision: ComputePrecision::F32.into(),
            world_size: 2,
            across: None,
            threads: 1,
            timeout: TimeSpan(Duration::from_secs(1)),
            task: Task::VerifyCollectives,
        };
        (report, job)
    }

    #[test]
    fn cases_stand_in_columns() {
        let (report, job) = report(None);
        assert_snapshot!(as_table(&report, &job), @"
        collective   type
        all_reduce   f32   right
        all_reduce   bf16  right
        sum_scalars  -     right
        right: 3 cases, 2 workers on cuda, NCCL 2.30.3
        ");
        assert_eq!(as_json(&report, &job)["passed"], true);
    }

    #[test]
    fn what_is_wrong_is_told_and_counted() {
        let (report, job) = report(Some("rank 1: element 7 is 1.0 where 2.0 is expected"));
        assert_snapshot!(as_table(&report, &job), @"
        collective   type
        all_reduce   f32   right
        all_reduce   bf16  WRONG  rank 1: element 7 is 1.0 where 2.0 is expected
        sum_scalars  -     right
        wrong: 1 of 3 cases, 2 workers on cuda, NCCL 2.30.3
        ");
        assert_eq!(as_json(&report, &job)["passed"], false);
    }
}
