//! What is known about one optimizer step.

use serde::{Deserialize, Serialize};

use crate::documented::documented;

documented! {
    /// One optimizer step: a line of `metrics.jsonl`.
    ///
    /// Numbers read back bit-exact. NaN and infinities are written as `null` and read back as NaN.
    #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
    pub struct StepRecord {
        /// Optimizer steps done, this one included; the first is 1.
        pub step: u64,
        /// When the step ended, in seconds since 1970.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub time: f64,
        /// Mean loss per trained token over all ranks, in nats.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub loss: f64,
        /// Norm of the whole gradient before clipping.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub grad_norm: f64,
        /// Whether the gradient was scaled down because its norm was over the limit.
        pub clipped: bool,
        /// Learning rate of the step.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub lr: f64,
        /// Tokens read since the start of the run, this step included, over all ranks.
        pub tokens: u64,
        /// Tokens of this step that carry loss, over all ranks; `loss` is their mean.
        pub tokens_trained: u64,
        /// Sequences read since the start of the run, this step included, over all ranks.
        pub samples: u64,
        /// Passes over the training data since the start of the run.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub epoch: f64,
        /// Seconds the step took.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub step_s: f64,
        /// Seconds of the step spent waiting for data.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub data_s: f64,
        /// Seconds of collectives in the step, waiting for other ranks included; some of them beside the
        /// backward. Null for several GPUs, where the host does not wait for them.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub comm_s: f64,
        /// Seconds of the step in which nothing was done beside collectives; null likewise.
        #[serde(deserialize_with = "crate::number::null_is_nan", default)]
        pub comm_exposed_s: f64,
        /// Tokens read per second of the step, over all ranks.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub tokens_per_s: f64,
        /// Resident memory of rank 0 on the host, in bytes.
        pub host_rss_bytes: u64,
    }
}

/// Fields that differ between two runs of the same config: times, what is derived from times, and
/// memory. Apart from them, equal runs write equal `metrics.jsonl` files.
pub const TIMING_FIELDS: &[&str] = &[
    "time",
    "step_s",
    "data_s",
    "comm_s",
    "comm_exposed_s",
    "tokens_per_s",
    "host_rss_bytes",
    "seconds",
];
