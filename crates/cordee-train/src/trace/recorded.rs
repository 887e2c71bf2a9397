//! What a trace on disk says: batches, the optimizer, and what another implementation computed.

use std::{ops::Range, path::Path};

use cordee_config::{OptimizerConfig, OptimizerKind};
use cordee_data::Batch;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, de::DeserializeOwned};

use crate::TrainError;

const TRACE_FILE: &str = "trace.json";
const BATCHES_FILE: &str = "batches.safetensors";
const LOGITS_FILE: &str = "logits.safetensors";

/// The parameters that weight decay may apply to, as traces say it.
const DECAYS: &str = "parameters with two or more dimensions";

/// A recorded training run.
pub(super) struct Recorded {
    pub(super) rows: usize,
    pub(super) seq_len: usize,
    pub(super) micro_batches: usize,
    pub(super) optimizer: OptimizerConfig,
    pub(super) steps: Vec<RecordedStep>,
    /// `steps × micro_batches × rows × (seq_len + 1)`.
    tokens: Vec<u32>,
    /// `steps × micro_batches × rows × seq_len`; all targets count when absent.
    loss_mask: Option<Vec<u8>>,
    pub(super) logits: Option<RecordedLogits>,
}

/// What was computed in one step.
#[derive(Deserialize)]
pub(super) struct RecordedStep {
    pub(super) lr: f64,
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    pub(super) tokens_trained: u64,
}

/// Logits behind the last token of each row of the first micro-batch, `rows × vocabulary`.
pub(super) struct RecordedLogits {
    /// Before the first step.
    pub(super) first: Vec<f32>,
    /// After the last.
    pub(super) last: Vec<f32>,
}

/// `trace.json`.
#[derive(Deserialize)]
struct TraceFile {
    steps: usize,
    micro_batches: usize,
    rows: usize,
    seq: usize,
    optimizer: OptimizerFile,
    trace: Vec<RecordedStep>,
}

/// The optimizer of a trace. A key that is not known here would be left out of the arithmetic.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizerFile {
    kind: String,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    #[serde(default)]
    decay_applies_to: Option<String>,
    clip_grad_norm: f64,
}

impl Recorded {
    pub(super) fn read(dir: &Path) -> Result<Self, TrainError> {
        let file: TraceFile = read_json(&dir.join(TRACE_FILE))?;
        let wrong = |why: String| refused(&dir.join(TRACE_FILE), why);
        if file.trace.len() != file.steps {
            let why = format!(
                "it says {} steps and lists {}",
                file.steps,
                file.trace.len()
            );
            return Err(wrong(why));
        }
        let optimizer = optimizer(&file.optimizer).map_err(wrong)?;
        let (micro_batches, rows, seq) = (file.micro_batches, file.rows, file.seq);

        let path = dir.join(BATCHES_FILE);
        let bytes = read_bytes(&path)?;
        let batches = tensors(&path, &bytes)?;
        let shape = |width| [file.steps, micro_batches, rows, width];
        let tokens = tensor(&path, &batches, "tokens", &shape(seq + 1))?;
        let tokens = integers(&tokens).map_err(|why| refused(&path, why))?;
        let has_mask = batches.tensor("loss_mask").is_ok();
        let loss_mask = has_mask
            .then(|| loss_mask(&path, &batches, &shape(seq)))
            .transpose()?;
        Ok(Self {
            rows,
            seq_len: seq,
            micro_batches,
            optimizer,
            steps: file.trace,
            tokens,
            loss_mask,
            logits: read_logits(&dir.join(LOGITS_FILE), rows)?,
        })
    }

    /// `rows` of a micro-batch (counted over all steps) as a batch of their own.
    pub(super) fn batch(&self, micro_batch: usize, rows: Range<usize>) -> Batch {
        let range = |width: usize| {
            let first = micro_batch * self.rows * width;
            first + rows.start * width..first + rows.end * width
        };
        Batch {
            rows: rows.len(),
            seq_len: self.seq_len,
            tokens: self.tokens[range(self.seq_len + 1)].to_vec(),
            loss_mask: self
                .loss_mask
                .as_ref()
                .map(|mask| mask[range(self.seq_len)].to_vec()),
            documents: None,
            sources: vec![0; rows.len()],
        }
    }

    /// All tokens of the first micro-batch, `rows × (seq_len + 1)`.
    pub(super) fn probe(&self) -> &[u32] {
        &self.tokens[..self.rows * (self.seq_len + 1)]
    }
}

fn optimizer(file: &OptimizerFile) -> Result<OptimizerConfig, String> {
    if file.kind != "adamw" {
        return Err(format!(
            "its optimizer is `{}`, and `adamw` is the one that is known",
            file.kind
        ));
    }
    if let Some(applies) = &file.decay_applies_to
        && !applies.starts_with(DECAYS)
    {
        return Err(format!(
            "its weight decay applies to `{applies}`; here it applies to {DECAYS}"
        ));
    }
    Ok(OptimizerConfig {
        kind: OptimizerKind::Adamw,
        betas: file.betas,
        eps: file.eps,
        weight_decay: file.weight_decay,
        clip_grad_norm: file.clip_grad_norm,
        ..OptimizerConfig::default()
    })
}

fn loss_mask(
    path: &Path,
    batches: &SafeTensors<'_>,
    shape: &[usize],
) -> Result<Vec<u8>, TrainError> {
    let mask = tensor(path, batches, "loss_mask", shape)?;
    if matches!(mask.dtype(), Dtype::U8 | Dtype::BOOL) {
        return Ok(mask.data().to_vec());
    }
    let why = format!("`loss_mask` is {:?}, not U8 or BOOL", mask.dtype());
    Err(refused(path, why))
}

/// The logits of a trace that has them.
fn read_logits(path: &Path, rows: usize) -> Result<Option<RecordedLogits>, TrainError> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_bytes(path)?;
    let file = tensors(path, &bytes)?;
    let read = |name: &str| -> Result<Vec<f32>, TrainError> {
        let view = file
            .tensor(name)
            .map_err(|error| refused(path, error.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape().first() != Some(&rows) {
            let (dtype, shape) = (view.dtype(), view.shape());
            let why = format!("`{name}` is {dtype:?} {shape:?}, not F32 with {rows} rows");
            return Err(refused(path, why));
        }
        let numbers = view.data().chunks_exact(4);
        Ok(numbers
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect())
    };
    Ok(Some(RecordedLogits {
        first: read("initial_last_logits")?,
        last: read("final_last_logits")?,
    }))
}

/// Token numbers of any of the types they are written in.
fn integers(view: &TensorView<'_>) -> Result<Vec<u32>, String> {
    let width = match view.dtype() {
        Dtype::I32 | Dtype::U32 => 4,
        Dtype::I64 => 8,
        other => return Err(format!("`tokens` are {other:?}, not I32, U32 or I64")),
    };
    let read = |bytes: &[u8]| {
        let (low, high) = bytes.split_at(4);
        let low = u32::from_le_bytes([low[0], low[1], low[2], low[3]]);
        let fits = high.iter().all(|byte| *byte == 0) && i32::try_from(low).is_ok();
        fits.then_some(low)
            .ok_or_else(|| "`tokens` holds a number that is no token".to_owned())
    };
    view.data().chunks_exact(width).map(read).collect()
}

/// A JSON file of a known form.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    serde_json::from_slice(&read_bytes(path)?).map_err(|error| refused(path, error.to_string()))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, TrainError> {
    std::fs::read(path).map_err(|error| refused(path, error.to_string()))
}

fn tensors<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, TrainError> {
    SafeTensors::deserialize(bytes).map_err(|error| refused(path, error.to_string()))
}

fn tensor<'a>(
    path: &Path,
    file: &SafeTensors<'a>,
    name: &str,
    shape: &[usize],
) -> Result<TensorView<'a>, TrainError> {
    let view = file
        .tensor(name)
        .map_err(|error| refused(path, error.to_string()))?;
    if view.shape() == shape {
        return Ok(view);
    }
    let why = format!(
        "`{name}` has shape {:?}, and {TRACE_FILE} says {shape:?}",
        view.shape()
    );
    Err(refused(path, why))
}

pub(super) fn refused(path: &Path, why: String) -> TrainError {
    TrainError::Trace {
        path: path.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(more: &str, kind: &str) -> Result<OptimizerConfig, String> {
        let text = format!(
            r#"{{"kind": "{kind}", "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.2, "clip_grad_norm": 2.0{more}}}"#
        );
        serde_json::from_str(&text)
            .map_err(|error| error.to_string())
            .and_then(|file| optimizer(&file))
    }

    #[test]
    fn an_optimizer_is_taken_as_it_is_stated_or_refused_by_name() {
        let known = parsed("", "adamw").unwrap();
        assert_eq!((known.betas, known.eps), ([0.8, 0.9], 1e-6));
        assert_eq!((known.weight_decay, known.clip_grad_norm), (0.2, 2.0));
        let unknown = [
            (parsed("", "lion"), "`lion`"),
            (parsed(r#", "amsgrad": true"#, "adamw"), "`amsgrad`"),
            (
                parsed(r#", "decay_applies_to": "all parameters""#, "adamw"),
                "`all parameters`",
            ),
        ];
        for (refused, name) in unknown {
            let why = refused.unwrap_err();
            assert!(why.contains(name), "{why}");
        }
    }
}
