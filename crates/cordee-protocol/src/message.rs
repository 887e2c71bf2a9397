//! Messages from a worker to its launcher: one JSON object a line.
//!
//! A worker computes and the launcher shows: whether a line becomes a bar, plain text, JSON or
//! nothing is decided where the terminal is.

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    check::CheckReport,
    collective::CollectiveReport,
    report::{BenchReport, CollectivesReport, OperatorsReport, TraceReport},
};

/// Something a worker tells its launcher. Only rank 0 sends more than `Warning`, `Check` and
/// `Failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WorkerMessage {
    /// What is about to run.
    Banner(Banner),
    /// A training step ended.
    Step(StepProgress),
    /// A validation ended.
    Evaluation(Evaluation),
    /// A checkpoint is on disk.
    Checkpoint {
        /// Step after which it was taken: the number of optimizer steps done.
        step: u64,
        /// Where it is.
        path: String,
        /// Bytes of all files.
        bytes: u64,
        /// Seconds from the start of the save to the durable commit.
        seconds: f64,
    },
    /// Text generated from the model.
    Sample {
        /// What the model was given.
        prompt: String,
        /// What it continued with.
        text: String,
    },
    /// Something the user should know; training goes on.
    Warning {
        /// The rank that says it.
        rank: usize,
        /// What happened, and what to do.
        text: String,
    },
    /// The run is over.
    Summary(Summary),
    /// A benchmark is over.
    Bench(Box<BenchReport>),
    /// A collective was measured with one size.
    Collective(CollectiveReport),
    /// Something about the machine was looked at.
    Check(CheckReport),
    /// A trace was replayed.
    Trace(TraceReport),
    /// The operators were compared with their references.
    Operators(OperatorsReport),
    /// Results of collectives were compared.
    VerifiedCollectives(CollectivesReport),
    /// This rank gives up, and why.
    Failed(Failure),
}

/// What is about to run, as label and text, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Banner {
    /// Label and text of each line.
    pub lines: Vec<(String, String)>,
    /// Step at which training starts (0, or the step resumed from).
    pub first_step: u64,
    /// Step at which training ends.
    pub last_step: u64,
}

/// One training step, for the console.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepProgress {
    /// Optimizer steps done, this one included (the first is 1).
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Mean loss per trained token, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Tokens per second, all ranks together.
    pub tokens_per_s: f64,
    /// Ranks.
    pub ranks: usize,
    /// Seconds the step took.
    pub step_s: f64,
    /// Seconds of it spent waiting for data.
    pub data_s: f64,
    /// Seconds of collectives in it, some of them beside the backward; not a number where nobody knows.
    #[serde(deserialize_with = "null_is_nan")]
    pub comm_s: f64,
    /// Seconds of it in which nothing was done beside collectives; likewise.
    #[serde(deserialize_with = "null_is_nan")]
    pub comm_exposed_s: f64,
    /// Resident memory of rank 0, in bytes.
    pub memory_bytes: u64,
    /// Whether the console should show it, were it not a bar.
    pub due: bool,
}

/// One validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean loss per token over all sources, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Seconds it took.
    pub seconds: f64,
    /// Each source by itself.
    pub sources: Vec<SourceEvaluation>,
}

/// The validation of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceEvaluation {
    /// Name of the source.
    pub name: String,
    /// Mean loss per token, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The loss in bits per byte of text; absent where only parts of a text are learned.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "null_is_some_nan"
    )]
    pub bits_per_byte: Option<f64>,
    /// Entropy of the same tokens' own frequencies, in bits per byte: what a model that knows no
    /// context but knows these frequencies exactly would need; absent with the above.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "null_is_some_nan"
    )]
    pub unigram_bits_per_byte: Option<f64>,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Steps done in all.
    pub step: u64,
    /// Whether the run was stopped on request before its last step.
    pub stopped: bool,
    /// Seconds since the worker started.
    pub seconds: f64,
    /// Tokens trained on since the worker started.
    pub tokens: u64,
    /// The last validation, if there was one.
    pub evaluation: Option<Evaluation>,
    /// The newest checkpoint.
    pub checkpoint: Option<String>,
}

/// Why a rank gives up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The rank that gives up.
    pub rank: usize,
    /// The rank without which it would not have: one that failed before, or never came.
    #[serde(default)]
    pub blames: Option<usize>,
    /// The exit code it ends with.
    pub code: u8,
    /// What happened, from the outermost error to its cause.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

/// JSON has no NaN and no infinity; both are written as null, which is read as NaN.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// For a field that may be absent: it is there.
fn null_is_some_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    null_is_nan(deserializer).map(Some)
}

impl WorkerMessage {
    /// The message as one line of JSON, with its line feed.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("messages hold nothing that JSON cannot");
        line.push('\n');
        line
    }

    /// Reads one line.
    pub fn from_line(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_reads_back() {
        let message = WorkerMessage::Warning {
            rank: 1,
            text: "two\nlines".to_owned(),
        };
        let line = message.to_line();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(WorkerMessage::from_line(&line).unwrap(), message);
    }

    #[test]
    fn a_loss_that_is_no_number_arrives_as_nan() {
        let message = WorkerMessage::Evaluation(Evaluation {
            step: 3,
            loss: f64::INFINITY,
            seconds: 0.5,
            sources: vec![SourceEvaluation {
                name: "a".to_owned(),
                loss: f64::NAN,
                bits_per_byte: Some(f64::NAN),
                unigram_bits_per_byte: None,
            }],
        });
        let WorkerMessage::Evaluation(read) = WorkerMessage::from_line(&message.to_line()).unwrap()
        else {
            panic!("it is an evaluation");
        };
        assert!(
            read.loss.is_nan()
                && read.sources[0].loss.is_nan()
                && read.sources[0].bits_per_byte.is_some_and(f64::is_nan)
                && read.sources[0].unigram_bits_per_byte.is_none()
        );
    }
}
