//! `cordee verify`: what is computed here, held against what is known to be right.

mod collectives;
mod operators;

use std::fmt::Write as _;

use anyhow::{Context, anyhow};
use cordee_config::{
    ComputePrecision, DeviceKind, ParallelConfig, PrecisionConfig, Recompute, Shard, StatePrecision,
};
use cordee_protocol::{ExitCode, TraceReport, WorkerMessage};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ranks;
use crate::{
    args::{PrecisionArg, VerifyCommand, VerifyTraceArgs},
    console::Console,
    devices,
    failure::Failure,
    job::{Job, Task, TraceTask, threads_per_rank},
};

/// What the optimizer keeps, if the model computes with it.
fn states(args: &VerifyTraceArgs) -> Result<StatePrecision, Failure> {
    match (args.precision, args.states) {
        (_, PrecisionArg::F32) => Ok(StatePrecision::F32),
        (PrecisionArg::Bf16, PrecisionArg::Bf16) => Ok(StatePrecision::Bf16),
        (PrecisionArg::F32, PrecisionArg::Bf16) => {
            let error = anyhow!("--states bf16 is for --precision bf16, and this computes in f32");
            Err(Failure::usage(error).with_hint("give both, or neither"))
        }
    }
}

/// Largest relative differences that are rounding.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    loss: f64,
    norm: f64,
    logits: f64,
}

impl Bounds {
    /// Independent ways of computing the same in f32 on the CPU stay within 1.2e-7 and 1e-6; a GELU
    /// that is only nearly the same is off by 2.3e-6 and 4e-5. A GPU sums in other orders and has
    /// functions of its own. bf16 keeps 8 bits of a number.
    /// Where weights are bf16 alone, each step rounds them by chance: norms and logits of the recorded
    /// traces were up to 5.3e-2 off.
    fn of(device: DeviceKind, precision: PrecisionConfig) -> Self {
        let (loss, norm, logits) = match (precision.compute, precision.states, device) {
            (ComputePrecision::F32, _, DeviceKind::Cpu) => (2e-6, 1e-5, 1e-4),
            (ComputePrecision::F32, _, DeviceKind::Cuda) => (1e-5, 1e-4, 1e-3),
            (ComputePrecision::Bf16, StatePrecision::F32, _) => (2e-2, 5e-2, 5e-2),
            (ComputePrecision::Bf16, StatePrecision::Bf16, _) => (2e-2, 1.5e-1, 1.5e-1),
        };
        Self { loss, norm, logits }
    }
}

pub(crate) fn run(command: &VerifyCommand) -> Result<u8, Failure> {
    match command {
        VerifyCommand::Trace(args) => verify_trace(args),
        VerifyCommand::Operators(args) => operators::run(args),
        VerifyCommand::Collectives(args) => collectives::run(args),
    }
}

fn verify_trace(args: &VerifyTraceArgs) -> Result<u8, Failure> {
    let dir = fs_err::canonicalize(&args.dir).map_err(|error| {
        Failure::usage(error).with_hint("verify trace takes the directory of a recorded trace")
    })?;
    let recompute = Recompute::deserialize(Value::from(args.recompute.as_str()))
        .context("reading --recompute")?;
    let mut parallel = ParallelConfig {
        shard: Shard::deserialize(Value::from(args.shard.as_str())).context("reading --shard")?,
        ..ParallelConfig::default()
    };
    if let Some(bucket_size) = args.bucket_size {
        parallel.bucket_size = bucket_size;
    }
    let precision = args.precision.precision();
    let device = devices::device(args.device.choice(), precision, args.workers)?;
    let job = Job {
        world_size: args.workers,
        across: None,
        threads: threads_per_rank(args.workers),
        timeout: parallel.timeout,
        device,
        precision: PrecisionConfig {
            compute: precision,
            states: states(args)?,
        },
        task: Task::Trace(TraceTask {
            dir,
            recompute,
            parallel,
        }),
    };
    let told = ranks::ask(&job, "verify")?;
    let Some(WorkerMessage::Trace(report)) = told.into_iter().next() else {
        let error = anyhow!("rank 0 ended without a report");
        return Err(Failure::new(ExitCode::Failed, error));
    };
    let findings = findings(&report, Bounds::of(device, job.precision));
    let passed = findings.iter().all(Finding::is_within_bound);
    let how = How { args, job: &job };
    Console::print_data(&if args.json {
        format!("{}\n", as_json(&report, &findings, &how, passed))
    } else {
        as_table(&report, &findings, &how, passed)
    });
    Ok(if passed {
        ExitCode::Done.code()
    } else {
        ExitCode::Failed.code()
    })
}

/// How the trace was replayed.
struct How<'a> {
    args: &'a VerifyTraceArgs,
    job: &'a Job,
}

/// How far one kind of number was from what was recorded.
struct Finding {
    name: &'static str,
    difference: f64,
    bound: f64,
}

impl Finding {
    /// False for NaN.
    fn is_within_bound(&self) -> bool {
        self.difference <= self.bound
    }
}

fn findings(report: &TraceReport, bounds: Bounds) -> Vec<Finding> {
    let largest = |pair: fn(&cordee_protocol::TraceStep) -> (f64, f64)| {
        let differences = report.steps.iter().map(|step| {
            let (found, expected) = pair(step);
            (found - expected).abs() / expected.abs()
        });
        // A NaN must not be passed over, as `f64::max` would.
        differences.fold(
            0.0,
            |most: f64, x| if most.is_nan() || x <= most { most } else { x },
        )
    };
    let finding = |name, difference, bound| Finding {
        name,
        difference,
        bound,
    };
    let mut findings = vec![
        finding(
            "loss",
            largest(|step| (step.loss, step.expected_loss)),
            bounds.loss,
        ),
        finding(
            "grad_norm",
            largest(|step| (step.grad_norm, step.expected_grad_norm)),
            bounds.norm,
        ),
        finding(
            "tokens_trained",
            largest(|step| {
                let (found, expected) = (step.tokens_trained, step.expected_tokens_trained);
                (found as f64, expected as f64)
            }),
            0.0,
        ),
    ];
    if let Some(logits) = &report.logits {
        findings.push(finding("first_logits", logits.first, bounds.logits));
        findings.push(finding("last_logits", logits.last, bounds.logits));
    }
    findings
}

fn as_json(report: &TraceReport, findings: &[Finding], how: &How<'_>, passed: bool) -> Value {
    let compared: serde_json::Map<_, _> = findings
        .iter()
        .map(|finding| {
            let figures = json!({
                "largest_relative_difference": finding.difference,
                "bound": finding.bound,
            });
            (finding.name.to_owned(), figures)
        })
        .collect();
    json!({
        "device": how.job.device,
        "workers": how.args.workers,
        "recompute": how.args.recompute,
        "precision": how.job.precision.compute,
        "states": how.job.precision.states,
        "passed": passed,
        "compared": compared,
        "steps": report.steps,
        "peak_memory_bytes": report.peak_memory_bytes,
    })
}

fn as_table(report: &TraceReport, findings: &[Finding], how: &How<'_>, passed: bool) -> String {
    let mut page = String::new();
    if how.args.steps {
        page.push_str("step         loss     recorded    grad norm     recorded   tokens\n");
        for (index, step) in report.steps.iter().enumerate() {
            let _ = writeln!(
                page,
                "{:>4} {:>12.8} {:>12.8} {:>12.8} {:>12.8} {:>8}",
                index + 1,
                step.loss,
                step.expected_loss,
                step.grad_norm,
                step.expected_grad_norm,
                step.tokens_trained
            );
        }
        page.push('\n');
    }
    page.push_str("                largest relative difference     bound\n");
    for finding in findings {
        let _ = writeln!(
            page,
            "{:<16}{:>27.1e}{:>10.1e}{}",
            finding.name,
            finding.difference,
            finding.bound,
            if finding.is_within_bound() {
                ""
            } else {
                "   too far"
            }
        );
    }
    if report.logits.is_none() {
        page.push_str("the trace has no logits.safetensors: logits were not compared\n");
    }
    let _ = writeln!(
        page,
        "{}: {} steps, {} workers on {}, recompute {}, {}",
        if passed { "equal" } else { "different" },
        report.steps.len(),
        how.args.workers,
        how.job.device.name(),
        how.args.recompute,
        how.job.precision.name()
    );
    page
}
