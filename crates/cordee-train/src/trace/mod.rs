//! Training steps that another implementation computed, computed again.

mod recorded;

use std::{ops::Range, path::Path};

use cordee_comm::ProcessGroup;
use cordee_config::{ParallelConfig, Recompute, hugging_face};
use cordee_data::DataError;
use cordee_model::{Context, Keep, Model, Weights, weights};
use cordee_ops::{Sequences, transfer};
use cordee_protocol::{LogitsDifference, TraceReport, TraceStep};

use self::recorded::{Recorded, refused};
use crate::{Compute, TrainError, learner::Learner, optimizer::Update, progress::peaks_of_ranks};

/// A trace to replay.
pub struct Trace<'a> {
    /// The directory: `config.json`, `model.safetensors`, `batches.safetensors`, `trace.json` and,
    /// if logits are to be compared, `logits.safetensors`.
    pub dir: &'a Path,
    /// Where to compute, and in which numbers.
    pub compute: Compute,
    /// What backwards compute again.
    pub recompute: Recompute,
    /// How the work is shared out.
    pub parallel: ParallelConfig,
}

/// Replays a trace with the steps of training. The rows of each micro-batch are dealt to the ranks
/// of `group`, which all call this with the same `trace` and get the same report.
pub fn replay(trace: &Trace<'_>, group: &mut dyn ProcessGroup) -> Result<TraceReport, TrainError> {
    let recorded = Recorded::read(trace.dir)?;
    let (rank, world) = (group.rank(), group.world_size());
    if world > recorded.rows {
        let why = format!(
            "its micro-batches have {} rows, which cannot be dealt to {world} ranks",
            recorded.rows
        );
        return Err(refused(trace.dir, why));
    }
    // The logits are behind all tokens of a row, of which training never sees the last.
    let model = model(trace.dir, recorded.seq_len + 1)?;
    let mut learner = Learner::new(
        &model,
        &trace.compute,
        trace.recompute,
        &trace.parallel,
        group,
    )?;
    learner
        .state
        .fill_parameters(|layout, buffer| weights::load(trace.dir, &model, layout, buffer))?;

    let before = last_logits(&learner, &recorded)?;
    let rows = rank * recorded.rows / world..(rank + 1) * recorded.rows / world;
    let steps = (0..recorded.steps.len())
        .map(|index| step(&mut learner, &recorded, index, &rows))
        .collect::<Result<_, _>>()?;
    let after = last_logits(&learner, &recorded)?;
    Ok(TraceReport {
        steps,
        logits: recorded.logits.map(|logits| LogitsDifference {
            first: difference(&before, &logits.first),
            last: difference(&after, &logits.last),
        }),
        peak_memory_bytes: peaks_of_ranks(learner.group)?,
    })
}

/// One step on this rank's rows.
fn step(
    learner: &mut Learner<'_>,
    recorded: &Recorded,
    index: usize,
    rows: &Range<usize>,
) -> Result<TraceStep, TrainError> {
    let first = index * recorded.micro_batches;
    let batches = (first..first + recorded.micro_batches)
        .map(|micro_batch| Ok::<_, DataError>(recorded.batch(micro_batch, rows.clone())));
    let counts = learner.accumulate(batches, false)?;
    if let Some(id) = learner.engine.never_reached() {
        return Err(TrainError::MissingGradient {
            parameter: learner.model.parameters()[id].name.clone(),
            why: "no backward reached it",
        });
    }
    let expected = &recorded.steps[index];
    let update = Update {
        step: index as u64 + 1,
        lr: expected.lr,
        tokens_trained: counts.tokens_trained,
        seed: 0,
    };
    let result = learner.update(&recorded.optimizer, &update)?;
    Ok(TraceStep {
        loss: result.loss,
        expected_loss: expected.loss,
        grad_norm: result.grad_norm,
        expected_grad_norm: expected.grad_norm,
        tokens_trained: counts.tokens_trained as u64,
        expected_tokens_trained: expected.tokens_trained,
    })
}

/// The largest difference of a logit from the recorded one, as a share of the largest recorded one.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    // A NaN must not be passed over, as `f32::max` would.
    let larger = |most: f32, x: f32| if most.is_nan() || x <= most { most } else { x };
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let scale = expected.iter().map(|x| x.abs()).fold(0.0, larger);
    f64::from(differences.fold(0.0, larger) / scale)
}

/// The logits behind the last token of each probed row, `rows × vocabulary`.
fn last_logits(learner: &Learner<'_>, recorded: &Recorded) -> Result<Vec<f32>, TrainError> {
    let (rows, len) = (recorded.rows, recorded.seq_len + 1);
    let context = Context {
        sequences: Sequences::Rows(len),
        inputs: recorded.probe(),
        targets: &[],
        loss_mask: None,
    };
    let model = learner.model;
    let parameters = learner.state.parameter_views()?;
    let x = model.forward(&context, &parameters, Keep::Dear, drop)?;
    let head = model.segments() - 1;
    // A selection of a few rows: the host does that for any device.
    let behind_last = || {
        let host = x.to_device(&candle_core::Device::Cpu)?;
        let last = host.reshape((rows, len, ()))?.narrow(1, len - 1, 1)?;
        last.squeeze(1)?.contiguous()?.to_device(x.device())
    };
    let weights = Weights::new(&parameters, model.ids(head));
    let logits = model.head.logits(weights, &behind_last()?)?;
    Ok(transfer::to_vec(&logits)?)
}

/// The model that `config.json` describes.
fn model(dir: &Path, max_seq_len: usize) -> Result<Model, TrainError> {
    let path = dir.join(hugging_face::CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(|error| refused(&path, error.to_string()))?;
    let shape = hugging_face::from_json(&text).map_err(|error| {
        let hint = error
            .hint()
            .map_or_else(String::new, |hint| format!("; {hint}"));
        refused(&path, format!("{error}{hint}"))
    })?;
    let vocab_size = shape.vocab_size.expect("a config.json has one");
    Ok(Model::new(&shape, vocab_size, max_seq_len)?)
}
