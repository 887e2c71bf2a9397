//! `cordee bench`: how fast this machine is, in numbers for people or programs. Here the training step.

mod comm;

use std::fmt::Write as _;

use anyhow::anyhow;
use cordee_config::{DeviceKind, Plan};
use cordee_protocol::{
    BenchCommunication, BenchPart, BenchProduct, BenchReport, ExitCode, WorkerMessage,
};
use serde_json::{Value, json};

use super::ranks;
use crate::{
    args::{BenchCommand, BenchTrainArgs, DeviceArg},
    console::Console,
    devices,
    failure::Failure,
    job::{BenchTask, Job, Task},
};

pub(crate) fn run(command: &BenchCommand) -> Result<u8, Failure> {
    match command {
        BenchCommand::Train(args) => bench_train(args),
        BenchCommand::Comm(args) => comm::run(args),
    }
}

fn bench_train(args: &BenchTrainArgs) -> Result<u8, Failure> {
    let plan = plan(args)?;
    let job = Job::of(
        &plan,
        Task::Bench(BenchTask {
            vocab_size: vocab_size(&plan),
            plan: plan.clone(),
            warmup: args.warmup,
            steps: args.steps,
            products: args.products,
            communication: args.communication,
            link: args.link.map(|link| link.0 as f64),
        }),
    );
    let told = ranks::ask(&job, "bench")?;
    let Some(WorkerMessage::Bench(report)) = told.into_iter().next() else {
        let error = anyhow!("rank 0 ended without a report");
        return Err(Failure::new(ExitCode::Failed, error));
    };
    let measured = Measured {
        report: &report,
        plan: &plan,
        job: &job,
        args,
    };
    Console::print_data(&if args.json {
        format!("{}\n", measured.json())
    } else {
        measured.table()
    });
    Ok(ExitCode::Done.code())
}

/// The config as flags say: each is a `--set`, so that there is one way by which values change.
fn plan(args: &BenchTrainArgs) -> Result<Plan, Failure> {
    let mut sets = Vec::new();
    if args.config.is_none() {
        sets.extend(
            [
                "model={vocab_size=32000,dim=288,layers=6,heads=6,ffn=768}",
                "data.seq_len=256",
                "data.sources=[{name=\"random\",path=\"random\"}]",
                "train={global_batch_size=8,micro_batch_size=8}",
                "schedule.kind=\"constant\"",
                "parallel.workers=1",
            ]
            .map(str::to_owned),
        );
    }
    sets.extend(args.sets.iter().cloned());
    let given = [
        ("model.dim", args.dim),
        ("model.layers", args.layers),
        ("model.heads", args.heads),
        ("model.kv_heads", args.kv_heads),
        ("model.ffn", args.ffn),
        ("model.vocab_size", args.vocab),
        ("data.seq_len", args.seq),
        ("parallel.workers", args.workers),
        ("parallel.threads", args.threads),
        ("train.steps", Some(args.warmup + args.steps)),
        // A schedule must fit into the steps, and no rate changes how long one takes.
        ("schedule.warmup_steps", Some(0)),
        ("train.global_batch_size", args.batch),
    ];
    sets.extend(
        given
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", value?))),
    );
    let words = [
        ("precision.compute", &args.precision),
        ("precision.states", &args.states),
        ("train.recompute", &args.recompute),
        ("parallel.shard", &args.shard),
    ];
    sets.extend(
        words
            .into_iter()
            .filter_map(|(key, word)| Some(format!("{key}={:?}", word.as_ref()?))),
    );
    sets.extend(args.device.map(DeviceArg::as_set));
    if args.tie {
        sets.push("model.tie_embeddings=true".to_owned());
    }
    let load = |sets: &[String]| {
        match &args.config {
            Some(path) => cordee_config::load(path, sets),
            None => cordee_config::from_sets(sets),
        }
        .map_err(Failure::usage)
    };
    if args.batch.is_some() || args.config.is_none() {
        let config = load(&sets)?.config;
        let parallel = &config.parallel;
        let workers = match parallel.workers {
            Some(workers) => workers,
            None => devices::machine(parallel.device)?.workers,
        };
        let batch = config.train.global_batch_size;
        if workers == 0 || !batch.is_multiple_of(workers) {
            let error =
                anyhow!("--batch {batch} cannot be shared out evenly over {workers} workers");
            return Err(
                Failure::usage(error).with_hint("give a batch that is a multiple of the workers")
            );
        }
        sets.push(format!("train.micro_batch_size={}", batch / workers));
    }
    devices::plan(&load(&sets)?)
}

/// Tokens to draw from: the embedding's rows, if the config names them, or the vocabulary that it
/// would train.
fn vocab_size(plan: &Plan) -> usize {
    let config = &plan.config;
    config.model.vocab_size.unwrap_or(config.data.vocab_size)
}

/// A report and what it is of.
struct Measured<'a> {
    report: &'a BenchReport,
    plan: &'a Plan,
    job: &'a Job,
    args: &'a BenchTrainArgs,
}

/// The middle of some numbers, and how far they spread.
#[derive(Clone, Copy)]
struct Spread {
    min: f64,
    p10: f64,
    median: f64,
    p90: f64,
    max: f64,
}

impl Spread {
    /// Of at least one number. Shares between two numbers are interpolated.
    fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (numbers.len() - 1) as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            numbers[below] + (numbers[above] - numbers[below]) * place.fract()
        };
        Self {
            min: at(0.0),
            p10: at(0.1),
            median: at(0.5),
            p90: at(0.9),
            max: at(1.0),
        }
    }

    fn json(self) -> Value {
        json!({ "min": self.min, "p10": self.p10, "p90": self.p90, "max": self.max })
    }
}

impl Measured<'_> {
    fn step_ms(&self) -> Spread {
        Spread::of(self.report.step_s.iter().map(|s| s * 1e3).collect())
    }

    fn tokens_per_s(&self) -> Spread {
        let tokens = self.report.tokens_per_step as f64;
        Spread::of(self.report.step_s.iter().map(|s| tokens / s).collect())
    }

    fn flops_per_s(&self) -> f64 {
        self.report.flops_per_token * self.tokens_per_s().median
    }

    fn utilization(&self) -> Option<f64> {
        let peak = self.args.peak_tflops? * 1e12 * self.plan.world_size as f64;
        Some(self.flops_per_s() / peak)
    }

    /// Seconds that the products of a step take together, each by itself: as they are, and by the fastest
    /// algorithm of each.
    fn products_s(&self) -> Option<[f64; 2]> {
        let products = &self.report.products;
        let all = |seconds: fn(&BenchProduct) -> f64| {
            let each = products.iter().map(|it| it.calls as f64 * seconds(it));
            each.sum()
        };
        (!products.is_empty()).then(|| [all(|it| it.seconds), all(|it| it.best_s)])
    }

    /// Seconds of a part at the peaks of arithmetic and memory, whichever takes longer.
    fn floor_s(&self, part: &BenchPart) -> Option<f64> {
        let (flops, bytes) = (self.args.peak_tflops? * 1e12, self.args.peak_gbs? * 1e9);
        Some((part.flops / flops).max(part.bytes / bytes))
    }

    /// Of all parts.
    fn step_floor_s(&self) -> Option<f64> {
        let parts = self.report.parts.iter();
        parts.map(|part| self.floor_s(part)).sum()
    }

    /// A part, its floor with it.
    fn part_json(&self, part: &BenchPart) -> Value {
        let mut told = json!(part);
        if let Some(floor) = self.floor_s(part) {
            told["floor_s"] = floor.into();
        }
        told
    }

    /// Largest of a rank, and all together, in MiB.
    fn peak_memory(&self) -> (u64, u64) {
        let peaks = &self.report.peak_memory_bytes;
        let largest = peaks.iter().max().copied().unwrap_or(0);
        (largest >> 20, peaks.iter().sum::<u64>() >> 20)
    }

    fn json(&self) -> Value {
        let (report, model) = (self.report, &self.plan.config.model);
        let (step_ms, tokens_per_s) = (self.step_ms(), self.tokens_per_s());
        let (largest, all) = self.peak_memory();
        json!({
            "model": model,
            "vocab_size": vocab_size(self.plan),
            "seq_len": self.plan.config.data.seq_len,
            "batch": self.plan.global_batch_size,
            "micro_batch": self.plan.micro_batch_size,
            "device": self.plan.device,
            "workers": self.job.world_size,
            "threads": self.job.threads,
            "precision": self.plan.config.precision.compute,
            "states": self.plan.config.precision.states,
            "recompute": self.plan.config.train.recompute,
            "warmup": self.args.warmup,
            "steps": report.step_s.len(),
            "parameters": report.parameters,
            "tokens_per_s": tokens_per_s.median,
            "tokens_per_s_spread": tokens_per_s.json(),
            "step_ms": step_ms.median,
            "step_ms_spread": step_ms.json(),
            "model_flops_per_token": report.flops_per_token,
            "model_flops_per_s": self.flops_per_s(),
            "mfu": self.utilization(),
            "peak_rss_mb": largest,
            "peak_rss_mb_sum": all,
            "gpu": report.gpu,
            "peak_gpu_mb": report.gpu.as_ref().map(|gpu| gpu.peak_bytes >> 20),
            "first_loss": report.first_loss,
            "last_loss": report.last_loss,
            "floor_ms": self.step_floor_s().map(|seconds| seconds * 1e3),
            "parts": report.parts.iter().map(|part| self.part_json(part)).collect::<Vec<_>>(),
            "products_ms": self.products_s().map(|[seconds, _]| seconds * 1e3),
            "products_best_ms": self.products_s().map(|[_, best]| best * 1e3),
            "products": (!report.products.is_empty()).then_some(&report.products),
            "communication": report.communication,
        })
    }

    fn table(&self) -> String {
        let (report, plan) = (self.report, self.plan);
        let (step_ms, tokens_per_s) = (self.step_ms(), self.tokens_per_s());
        let (largest, all) = self.peak_memory();
        let mut lines = vec![
            (
                "model",
                format!(
                    "{:.2} M parameters, {} sequences of {}, {} workers of {} threads{}, {}",
                    report.parameters as f64 / 1e6,
                    plan.global_batch_size,
                    plan.config.data.seq_len,
                    self.job.world_size,
                    self.job.threads,
                    match plan.device {
                        DeviceKind::Cpu => "",
                        DeviceKind::Cuda => " and a GPU each",
                    },
                    plan.config.precision.name()
                ),
            ),
            (
                "tokens/s",
                format!(
                    "{:.0}   ({:.0} to {:.0})",
                    tokens_per_s.median, tokens_per_s.min, tokens_per_s.max
                ),
            ),
            (
                "step",
                format!(
                    "{:.1} ms   (min {:.1}, p10 {:.1}, p90 {:.1}, max {:.1}; {} steps)",
                    step_ms.median,
                    step_ms.min,
                    step_ms.p10,
                    step_ms.p90,
                    step_ms.max,
                    report.step_s.len()
                ),
            ),
            (
                "model flops",
                format!(
                    "{:.1} GFLOP/s{}",
                    self.flops_per_s() / 1e9,
                    self.utilization()
                        .map_or_else(String::new, |mfu| format!(", {:.1}% of peak", mfu * 100.0))
                ),
            ),
            (
                "peak memory",
                format!("{largest} MiB a rank at most, {all} MiB in all"),
            ),
            (
                "loss",
                format!("{:.4} to {:.4}", report.first_loss, report.last_loss),
            ),
        ];
        if let Some(gpu) = &report.gpu {
            let mebibytes = |bytes: u64| bytes >> 20;
            lines.insert(
                lines.len() - 1,
                (
                    "GPU memory",
                    format!(
                        "{} MiB at most, {} MiB reserved, {} MiB more after the warm-up; {}",
                        mebibytes(gpu.peak_bytes),
                        mebibytes(gpu.reserved_bytes),
                        mebibytes(gpu.reserved_growth_bytes),
                        gpu.name
                    ),
                ),
            );
        }
        let sums = report.communication.as_ref();
        lines.extend(sums.map(|sums| ("communication", communication(sums))));
        lines.extend(self.part_lines(step_ms.median));
        lines.iter().fold(String::new(), |mut page, (label, text)| {
            let _ = writeln!(page, "{label:<14}{text}");
            page
        })
    }

    /// Each part of a step beside its floor, and each product by itself, if it was measured; the step
    /// took `step_ms`.
    fn part_lines(&self, step_ms: f64) -> Vec<(&'static str, String)> {
        let report = self.report;
        let mut lines = Vec::new();
        if let Some(floor) = self.step_floor_s() {
            let text = format!(
                "{:.2} ms at the peaks, {:.1}% of the step; of each part on the right",
                floor * 1e3,
                100.0 * floor * 1e3 / step_ms
            );
            lines.push(("floor", text));
        }
        // Of the steps whose parts were timed, which a GPU does apart from those that are measured.
        let step = report.parts.iter().map(|part| part.seconds).sum::<f64>();
        lines.extend(report.parts.iter().map(|part| {
            let pass = part.pass.as_deref().unwrap_or("");
            let floor = self.floor_s(part).filter(|&floor| floor > 0.0);
            let floor = floor.map_or_else(String::new, |floor| {
                let share = 100.0 * floor / part.seconds;
                format!("{:>12.2} ms {share:>5.1}%", floor * 1e3)
            });
            let text = format!(
                "{:<16}{pass:<10}{:>9.2} ms {:>5.1}%{floor}",
                part.name,
                part.seconds * 1e3,
                100.0 * part.seconds / step
            );
            ("", text)
        }));
        if let Some([seconds, best]) = self.products_s() {
            let text = format!(
                "{:.2} ms of a step, each by itself, {:.1}% of it; {:.2} ms by the fastest algorithms",
                seconds * 1e3,
                100.0 * seconds * 1e3 / step_ms,
                best * 1e3
            );
            lines.push(("products", text));
            lines.extend(report.products.iter().map(|it| ("", product(it))));
        }
        lines
    }
}

/// A product, in words: how often, how long, how fast.
fn product(product: &BenchProduct) -> String {
    let BenchProduct {
        name,
        result,
        sizes: [n, input, output],
        calls,
        seconds,
        best_s,
        best,
    } = product;
    let flops = 2.0 * (n * input * output) as f64;
    let calls = match calls {
        0 => "    not used".to_owned(),
        calls => format!("{calls:>10} x"),
    };
    let found = match best {
        0 => String::new(),
        best => format!(", {:.3} ms by suggestion {best}", best_s * 1e3),
    };
    format!(
        "{name:<52}{result:<8}{n:>7} x {input:>6} x {output:>6}{calls}{:>10.3} ms {:>8.2} TFLOP/s{found}",
        seconds * 1e3,
        flops / seconds / 1e12
    )
}

/// What summing gradients costs, in words.
fn communication(sums: &BenchCommunication) -> String {
    format!(
        "{:.1} ms alone for {:.1} MB in {} parts; {:.1} ms a step with it, {:.1} without: {:.0}% hidden; {:.1} ms waited",
        sums.alone_s * 1e3,
        sums.bytes as f64 / 1e6,
        sums.buckets,
        sums.step_s * 1e3,
        sums.step_without_s * 1e3,
        sums.hidden * 100.0,
        sums.waited_s * 1e3
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_lies_between_two() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 4.0));
        assert!((spread.p10 - 1.3).abs() < 1e-12 && (spread.p90 - 3.7).abs() < 1e-12);
        assert_eq!(Spread::of(vec![7.0]).median.to_bits(), 7.0_f64.to_bits());
    }
}
