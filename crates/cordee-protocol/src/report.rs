//! What jobs other than training tell at their end: measurements and comparisons.

use serde::{Deserialize, Serialize};

use crate::message::null_is_nan;

/// A benchmark of the training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Trainable parameters.
    pub parameters: u64,
    /// Tokens of a step, over all ranks and micro-batches.
    pub tokens_per_step: u64,
    /// Floating-point operations of the model for one token, forward and backward.
    pub flops_per_token: f64,
    /// Seconds of each measured step, in order, as rank 0 saw them.
    pub step_s: Vec<f64>,
    /// Mean loss of the very first step, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub first_loss: f64,
    /// Mean loss of the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub last_loss: f64,
    /// Where rank 0 spent the measured steps.
    pub parts: Vec<BenchPart>,
    /// Each product of a step by itself, if that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub products: Vec<BenchProduct>,
    /// The most resident memory each rank ever had, in bytes, by rank.
    pub peak_memory_bytes: Vec<u64>,
    /// The GPU of rank 0, if it computed on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<BenchGpu>,
    /// What summing gradients over ranks costs, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communication: Option<BenchCommunication>,
}

/// What summing gradients over ranks costs; times are medians as rank 0 saw them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchCommunication {
    /// Bytes of gradients on each rank.
    pub bytes: u64,
    /// Parts that they are summed in.
    pub buckets: u64,
    /// Seconds of a step.
    pub step_s: f64,
    /// Seconds of a step that sums nothing.
    pub step_without_s: f64,
    /// Seconds of the sums with nothing beside them.
    pub alone_s: f64,
    /// Seconds of a step in which nothing was done beside collectives.
    pub waited_s: f64,
    /// The share of `alone_s` by which a step is not longer.
    #[serde(deserialize_with = "null_is_nan")]
    pub hidden: f64,
}

/// A GPU in a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchGpu {
    /// Its name.
    pub name: String,
    /// The most of its memory that tensors and buffers took at once, in bytes.
    pub peak_bytes: u64,
    /// What the process has of its memory at the end, used or kept for the next who asks.
    pub reserved_bytes: u64,
    /// By how much that grew in the measured steps: 0 where a step asks nothing of the system.
    pub reserved_growth_bytes: u64,
}

/// One kind of work in a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchPart {
    /// What was done, such as `attention` or `optimizer`.
    pub name: String,
    /// `forward` or `backward`, where it is part of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<String>,
    /// Times it was done in a step.
    pub calls: f64,
    /// Mean seconds of it in a step.
    pub seconds: f64,
    /// Operations of its products of matrices in a step; 0 of what is no arithmetic.
    #[serde(default)]
    pub flops: f64,
    /// Bytes of memory that it has to read or write in a step; 0 where nobody counts.
    #[serde(default)]
    pub bytes: f64,
}

/// A product of matrices by itself, on operands that are there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchProduct {
    /// Whose, such as `mlp.up_proj`; several that are computed as one are joined by `+`.
    pub name: String,
    /// `forward`, `input` for the gradient of the input, or `weight`.
    pub result: String,
    /// Rows of the input, its width, and that of the output.
    pub sizes: [u64; 3],
    /// Times a step has it; 0 of what a step computes otherwise: as one with others, or each by itself.
    pub calls: u64,
    /// Seconds of one.
    pub seconds: f64,
    /// Seconds by the fastest of the algorithms that the library suggests, the first of which is the one
    /// that is used; the same on the host.
    pub best_s: f64,
    /// Its number among them, from 0 on.
    pub best: u64,
}

/// A trace that was replayed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceReport {
    /// Every step, in order.
    pub steps: Vec<TraceStep>,
    /// Differences of the logits, where the trace has any.
    pub logits: Option<LogitsDifference>,
    /// The most resident memory each rank ever had, in bytes, by rank.
    pub peak_memory_bytes: Vec<u64>,
}

/// How far logits are from recorded ones: the largest difference, as a share of the largest recorded
/// logit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogitsDifference {
    /// Before the first step.
    #[serde(deserialize_with = "null_is_nan")]
    pub first: f64,
    /// After the last.
    #[serde(deserialize_with = "null_is_nan")]
    pub last: f64,
}

/// A step beside what was recorded of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceStep {
    /// Mean loss per trained token, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The recorded one.
    pub expected_loss: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// The recorded one.
    pub expected_grad_norm: f64,
    /// Targets that counted.
    pub tokens_trained: u64,
    /// The recorded number.
    pub expected_tokens_trained: u64,
}

/// Collectives whose results were compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectivesReport {
    /// What did the transport, such as `NCCL 2.30.3`.
    pub transport: String,
    /// Every case.
    pub findings: Vec<CollectiveFinding>,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectiveFinding {
    /// The collective, or what was done with several.
    pub case: String,
    /// Type of the elements, where there are some.
    pub dtype: Option<String>,
    /// What was wrong, and on which rank.
    pub wrong: Option<String>,
}

/// Operators that were compared with their references.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatorsReport {
    /// Every result of every case, operator by operator.
    pub findings: Vec<OperatorFinding>,
}

/// One result of an operator, beside the reference's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatorFinding {
    /// Name of the operator.
    pub operator: String,
    /// What it computed.
    pub case: String,
    /// Which of the results.
    pub result: String,
    /// The largest error, relative to the largest expected number.
    #[serde(deserialize_with = "null_is_nan")]
    pub error: f64,
    /// What the error must not exceed.
    pub bound: f64,
}
