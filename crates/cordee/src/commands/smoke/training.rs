//! Twenty steps of training, from text to a checkpoint, whose losses are on record.

use std::{path::Path, time::Duration};

use anyhow::Context;
use cordee_config::DeviceKind;
use cordee_protocol::{Check, Finding, StepProgress};

use super::watch::{Expected, look, reason};
use crate::{
    commands::prepare::prepare_data,
    console::{Console, ProgressMode},
    devices,
    failure::Failure,
    job::{Job, Task, TrainTask, threads_per_rank},
};

/// Of a message of a president to Congress, which `data/README.md` has whole.
const TEXT: &str = include_str!("text.txt");

/// Sequences of a step. They are shared out evenly, so that not every number of ranks can train.
const BATCH: usize = 16;

/// Mean loss of each step, in nats, in f32, of one rank with AVX-512. The order of data does not depend
/// on the number of ranks, and two and four of them are within 1e-6; other processors round otherwise.
const LOSSES: [f64; 20] = [
    5.775_431, 5.745_308, 5.655_775, 5.495_385, 5.333_019, 5.183_559, 5.052_419, 4.916_300,
    4.805_371, 4.729_846, 4.647_404, 4.568_773, 4.492_171, 4.457_703, 4.427_500, 4.428_935,
    4.472_647, 4.359_592, 4.342_020, 4.383_828,
];

/// The most of so many ranks that can share a step evenly.
pub(super) fn ranks(most: usize) -> usize {
    (1..=most.max(1))
        .rev()
        .find(|ranks| BATCH.is_multiple_of(*ranks))
        .unwrap_or(1)
}

/// Trains in `work`, an empty directory of its own.
pub(super) fn train(
    work: &Path,
    device: DeviceKind,
    most_ranks: usize,
    patience: Option<Duration>,
) -> Result<Finding, Failure> {
    let ranks = ranks(most_ranks);
    let job = match job(work, device, ranks) {
        Ok(job) => job,
        Err(failure) => {
            let why = failure.to_string();
            return Ok(Finding::Unknown { why });
        }
    };
    let expected = [Expected {
        of: None,
        checks: vec![Check::Training],
    }];
    let told = look(&job, &expected, patience)?;
    // A run that gives up says what is wrong; one that is killed says nothing.
    if let Some(report) = &told.failed {
        let why = reason(report);
        return Ok(match report.failure {
            Some(_) => Finding::Broken { why },
            None => Finding::Unknown { why },
        });
    }
    if told.steps.len() < LOSSES.len()
        && let Some(report) = told.reports.into_iter().next()
    {
        return Ok(report.finding);
    }
    Ok(compared(&told.steps, ranks))
}

/// The largest relative difference of a loss from the one on record.
fn compared(steps: &[StepProgress], ranks: usize) -> Finding {
    let mut most = 0.0_f64;
    for (step, expected) in steps.iter().zip(LOSSES) {
        let difference = (step.loss - expected).abs() / expected;
        // What is not a number stays, and `f64::max` would pass it over.
        if difference.is_nan() || difference > most {
            most = difference;
        }
        if most.is_nan() {
            break;
        }
    }
    let (first, last) = (&steps[0], &steps[steps.len() - 1]);
    let detail = format!(
        "loss {:.4} to {:.4} over {ranks} ranks",
        first.loss, last.loss
    );
    Finding::with_detail(most, detail)
}

fn job(work: &Path, device: DeviceKind, ranks: usize) -> Result<Job, Failure> {
    let (text, run, cache) = (work.join("text.txt"), work.join("run"), work.join("cache"));
    fs_err::write(&text, TEXT).context("writing the text to train on")?;
    fs_err::create_dir_all(run.join("checkpoints")).context("making a run directory")?;
    let path = |path: &Path| path.to_str().map(str::to_owned).context("a path in UTF-8");
    let sets = [
        "model={dim=64,layers=2,heads=4,ffn=128}".to_owned(),
        "data.seq_len=64".to_owned(),
        "data.vocab_size=320".to_owned(),
        "data.validation_fraction=0.05".to_owned(),
        format!("data.cache_dir={:?}", path(&cache)?),
        format!("data.sources=[{{name=\"text\",path={:?}}}]", path(&text)?),
        format!("train.global_batch_size={BATCH}"),
        format!("train.micro_batch_size={}", BATCH / ranks),
        format!("train.steps={}", LOSSES.len()),
        "optimizer.lr=3e-3".to_owned(),
        "schedule={kind=\"constant\",warmup_steps=4}".to_owned(),
        format!("parallel.workers={ranks}"),
        format!("parallel.device={:?}", device.name()),
        "checkpoint.every=0".to_owned(),
        "eval.every=0".to_owned(),
        "eval.sample_prompt=\"\"".to_owned(),
        "log.tensorboard=false".to_owned(),
    ];
    let loaded = cordee_config::from_sets(&sets).map_err(Failure::usage)?;
    let mut plan = devices::plan(&loaded)?;
    let corpus = prepare_data(&plan, &mut Console::new(ProgressMode::None))?;
    plan.config.parallel.threads = Some(threads_per_rank(ranks));
    Ok(Job::of(
        &plan.clone(),
        Task::Train(TrainTask {
            corpus: corpus.entry().to_owned(),
            run_dir: run,
            resume: None,
            furthest_step: 0,
            last_step: plan.steps,
            warnings: Vec::new(),
            plan,
        }),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_the_batch_evenly() {
        assert_eq!(
            [1, 2, 3, 4, 6, 8, 15, 16, 40].map(ranks),
            [1, 2, 2, 4, 4, 8, 8, 16, 16]
        );
    }

    #[test]
    fn losses_that_are_not_numbers_are_far_off() {
        let step = |loss| StepProgress {
            step: 1,
            steps: 20,
            loss,
            grad_norm: 1.0,
            lr: 1e-3,
            tokens_per_s: 1.0,
            ranks: 2,
            step_s: 1.0,
            data_s: 0.0,
            comm_s: 0.0,
            comm_exposed_s: 0.0,
            memory_bytes: 1,
            due: false,
        };
        let of = |losses: &[f64]| {
            let steps: Vec<_> = losses.iter().map(|loss| step(*loss)).collect();
            let Finding::Measured { value, .. } = compared(&steps, 2) else {
                panic!("it was measured");
            };
            value
        };
        assert!(of(&LOSSES).abs() < 1e-12);
        let mut off = LOSSES;
        off[7] *= 1.01;
        assert!((of(&off) - 0.01).abs() < 1e-12);
        off[3] = f64::NAN;
        assert!(of(&off).is_nan());
    }
}
