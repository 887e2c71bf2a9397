//! How long a training step takes, and what it takes the time for: the steps of [`crate::train`]
//! on random tokens, without files.

mod products;

use std::time::Instant;

use cordee_comm::{EmulatedLink, ProcessGroup};
use cordee_config::{ModelConfig, Plan};
use cordee_data::{Batch, DataError};
use cordee_memory::DType;
use cordee_model::{Model, Parameter};
use cordee_ops::{
    Device,
    random::Stream,
    timing::{self, Entry, Pass, Work},
};
use cordee_protocol::{BenchCommunication, BenchGpu, BenchPart, BenchReport};

use crate::{
    Compute, TrainError,
    learner::{Learner, Times},
    optimizer::Update,
    out_of_memory::Circumstances,
    progress::{Stopwatch, peaks_of_ranks},
    reduction::{Reduction, When},
    schedule::learning_rate,
};

/// Steps of a GPU whose parts are timed, after those that are measured.
const TIMED_APART: usize = 5;

/// What to measure.
pub struct Bench<'a> {
    /// The model, the batch and the optimizer; its data is not read.
    pub plan: &'a Plan,
    /// Where to compute, and in which numbers.
    pub compute: &'a Compute,
    /// Size of the vocabulary that tokens are drawn from.
    pub vocab_size: usize,
    /// Steps before the first that counts.
    pub warmup: usize,
    /// Steps that count, at least one.
    pub steps: usize,
    /// Whether to measure each product of a step by itself, too.
    pub products: bool,
    /// Whether to measure what summing gradients costs, after all else.
    pub communication: bool,
    /// Bytes per second of a link to emulate between the ranks; `None` for what they have.
    pub link: Option<f64>,
}

/// Measures the training step. Every rank of `group` calls this with the same `bench` and gets the
/// same sums; the times are its own.
pub fn bench(bench: &Bench<'_>, group: &mut dyn ProcessGroup) -> Result<BenchReport, TrainError> {
    let measured = match bench.link {
        Some(bytes_per_s) => measure(bench, &mut EmulatedLink::new(group, bytes_per_s)),
        None => measure(bench, group),
    };
    measured.map_err(|error| {
        let circumstances = Circumstances {
            plan: bench.plan,
            vocab_size: bench.vocab_size,
            compute: bench.compute,
            step: 1,
        };
        circumstances.explain(error)
    })
}

fn measure(bench: &Bench<'_>, group: &mut dyn ProcessGroup) -> Result<BenchReport, TrainError> {
    let config = &bench.plan.config;
    let model = Model::new(&config.model, bench.vocab_size, config.data.seq_len)?;
    let sequences = [bench.plan.micro_batch_size, config.data.seq_len];
    let _preparation = model.prepare(&bench.compute.device, bench.compute.numbers, sequences);
    let recompute = config.train.recompute;
    let mut learner = Learner::new(&model, bench.compute, recompute, &config.parallel, group)?;
    learner.state.initialise(&model, config.train.seed)?;

    let device = &bench.compute.device;
    // Steps of a GPU are not told apart into their parts while they are measured: that would have the
    // host wait for each part.
    let timed_apart = device.facts().is_some();
    let timed = if timed_apart { TIMED_APART } else { 0 };
    let (mut step_s, mut losses) = (Vec::new(), Vec::new());
    let mut drawing = Stopwatch::default();
    let mut reserved = 0;
    let last = bench.warmup + bench.steps;
    for index in 0..last + timed {
        if index == bench.warmup {
            reserved = reserved_bytes(device)?;
        }
        if index == if timed_apart { last } else { bench.warmup } {
            drawing.take();
            learner.times = Times::default();
            timing::start(device);
        }
        let started = Instant::now();
        losses.push(step(bench, &mut learner, &mut drawing, index as u64)?);
        if index >= bench.warmup {
            step_s.push(started.elapsed().as_secs_f64());
        }
    }

    let operators = timing::take();
    let timed_s = step_s.split_off(if timed_apart { bench.steps } else { 0 });
    if !timed_apart {
        step_s.clone_from(&timed_s);
    }
    let peaks = peaks_of_ranks(learner.group)?;
    let parts = parts(&operators, &mut learner.times, &mut drawing, &timed_s);
    let communication = if bench.communication && learner.group.world_size() > 1 {
        Some(communication(bench, &mut learner)?)
    } else {
        None
    };
    let products = if bench.products {
        // They take as much memory as they like.
        drop(learner);
        let tokens = bench.plan.micro_batch_size * config.data.seq_len;
        products::products(&model, bench.compute, tokens, bench.plan.accumulation_steps)?
    } else {
        Vec::new()
    };
    Ok(BenchReport {
        communication,
        products,
        parameters: model.parameter_count() as u64,
        tokens_per_step: bench.plan.tokens_per_step,
        flops_per_token: flops_per_token(&model, &config.model, config.data.seq_len),
        parts,
        step_s,
        first_loss: losses[0],
        last_loss: losses[last - 1],
        peak_memory_bytes: peaks,
        gpu: gpu(device, reserved)?,
    })
}

/// What summing gradients costs: steps with it, steps without it, and it without steps, in turn. After
/// this the ranks' weights differ.
fn communication(
    bench: &Bench<'_>,
    learner: &mut Learner<'_>,
) -> Result<BenchCommunication, TrainError> {
    let (mut with_s, mut without_s, mut alone_s) = (Vec::new(), Vec::new(), Vec::new());
    let mut waited_s = Vec::new();
    let summed = learner.reduction;
    let omitted = Reduction {
        when: When::Never,
        ..summed
    };
    for index in 0..bench.steps as u64 {
        for (reduction, seconds) in [(summed, &mut with_s), (omitted, &mut without_s)] {
            learner.reduction = reduction;
            learner.group.barrier()?;
            learner.times.collectives.take();
            let started = Instant::now();
            step(bench, learner, &mut Stopwatch::default(), index)?;
            seconds.push(started.elapsed().as_secs_f64());
            if reduction.when != When::Never {
                waited_s.push(learner.times.collectives.take());
            }
        }
        learner.group.barrier()?;
        let started = Instant::now();
        summed.all(&mut learner.state.gradients, learner.group)?;
        learner.group.wait()?;
        alone_s.push(started.elapsed().as_secs_f64());
    }
    let [with, without, alone, waited] = [with_s, without_s, alone_s, waited_s].map(median);
    Ok(BenchCommunication {
        bytes: (learner.state.layout.len() * DType::F32.size_in_bytes()) as u64,
        buckets: learner.state.gradients.len() as u64,
        step_s: with,
        step_without_s: without,
        alone_s: alone,
        waited_s: waited,
        hidden: 1.0 - (with - without) / alone,
    })
}

/// The middle of at least one number.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    f64::midpoint(numbers[(numbers.len() - 1) / 2], numbers[numbers.len() / 2])
}

/// Bytes that the process has of a GPU's memory; 0 on the host.
fn reserved_bytes(device: &Device) -> Result<usize, TrainError> {
    Ok(device.memory()?.map_or(0, |memory| memory.reserved))
}

/// What there is to tell of a GPU, of whose memory the process had `reserved` bytes after the
/// warm-up.
fn gpu(device: &Device, reserved: usize) -> Result<Option<BenchGpu>, TrainError> {
    let (Some(facts), Some(memory)) = (device.facts(), device.memory()?) else {
        return Ok(None);
    };
    Ok(Some(BenchGpu {
        name: facts.name,
        peak_bytes: memory.peak as u64,
        reserved_bytes: memory.reserved as u64,
        reserved_growth_bytes: memory.reserved.saturating_sub(reserved) as u64,
    }))
}

/// One optimizer step on random tokens, as training does it; returns its loss.
fn step(
    bench: &Bench<'_>,
    learner: &mut Learner<'_>,
    drawing: &mut Stopwatch,
    index: u64,
) -> Result<f64, TrainError> {
    let plan = bench.plan;
    let (rank, world) = (learner.group.rank(), learner.group.world_size());
    let micro_batches = (0..plan.accumulation_steps).map(|micro| {
        let turn = (index as usize * plan.accumulation_steps + micro) * world + rank;
        Ok::<_, DataError>(drawing.time(|| random_batch(bench, turn)))
    });
    let counts = learner.accumulate(micro_batches, false)?;
    let update = Update {
        step: index + 1,
        lr: learning_rate(&plan.config, index + 1),
        tokens_trained: counts.tokens_trained,
        seed: plan.config.train.seed,
    };
    Ok(learner.update(&plan.config.optimizer, &update)?.loss)
}

/// A micro-batch of tokens that depend on the seed and on `turn` alone.
fn random_batch(bench: &Bench<'_>, turn: usize) -> Batch {
    let plan = bench.plan;
    let (rows, seq_len) = (plan.micro_batch_size, plan.config.data.seq_len);
    let stream = Stream::named(plan.config.train.seed, "bench");
    let count = rows * (seq_len + 1);
    let blocks = count.div_ceil(4);
    let numbers = (0..blocks).flat_map(|block| stream.block((turn * blocks + block) as u64));
    // The upper half of the product with the size is uniform over it (Lemire, 2019).
    let token = |number: u32| ((u64::from(number) * bench.vocab_size as u64) >> 32) as u32;
    Batch {
        rows,
        seq_len,
        tokens: numbers.take(count).map(token).collect(),
        loss_mask: None,
        documents: None,
        sources: vec![0; rows],
    }
}

/// Operations per token: 6 for each parameter that is multiplied with (2 forward, 4 backward), which
/// an embedding's table is only where the head shares it; and 6 × layers × width × context for
/// attention, causal and so counted half (`PaLM`, Chowdhery et al. 2022, appendix B, halved).
fn flops_per_token(model: &Model, config: &ModelConfig, seq_len: usize) -> f64 {
    let looked_up = model.embedding.parameters();
    let mut multiplied =
        model.parameter_count() - looked_up.iter().map(Parameter::elements).sum::<usize>();
    if model.head.tied() {
        multiplied += looked_up[0].elements();
    }
    let width = config.head_dim.unwrap_or(config.dim / config.heads) * config.heads;
    6.0 * (multiplied + config.layers * width * seq_len) as f64
}

/// Seconds per step of each kind of work: the model's operators, then what is around them, then the
/// rest of the step.
fn parts(
    operators: &[Entry],
    times: &mut Times,
    drawing: &mut Stopwatch,
    step_s: &[f64],
) -> Vec<BenchPart> {
    let steps = step_s.len() as f64;
    let part = |name: &str, pass: Option<Pass>, calls: f64, seconds: f64, work: Work| BenchPart {
        name: name.to_owned(),
        pass: pass.map(|pass| pass.name().to_owned()),
        calls,
        seconds,
        flops: work.flops / steps,
        bytes: work.bytes / steps,
    };
    // The operators of the update are part of what has a stopwatch of its own.
    let of_model = operators.iter().filter(|entry| entry.pass != Pass::Update);
    let mut parts: Vec<BenchPart> = of_model
        .map(|entry| {
            let (calls, seconds) = (entry.calls as f64 / steps, entry.seconds / steps);
            part(entry.operator, Some(entry.pass), calls, seconds, entry.work)
        })
        .collect();
    parts.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let update = |operator| {
        let mut of = operators.iter().filter(|entry| entry.pass == Pass::Update);
        let entry = of.find(|entry| entry.operator == operator);
        entry.map_or(Work::default(), |entry| entry.work)
    };
    let around = [
        ("optimizer", &mut times.optimizer, update("adamw")),
        (
            "gradient norm",
            &mut times.gradient_norm,
            update("gradient_norm"),
        ),
        ("collectives", &mut times.collectives, Work::default()),
        ("data", drawing, Work::default()),
    ];
    let part_around = |(name, watch, work): (&str, &mut Stopwatch, Work)| {
        part(name, None, 1.0, watch.take() / steps, work)
    };
    parts.extend(around.map(part_around));
    let known: f64 = parts.iter().map(|part| part.seconds).sum();
    let all = step_s.iter().sum::<f64>() / steps;
    parts.push(part("rest", None, 1.0, all - known, Work::default()));
    parts
}
