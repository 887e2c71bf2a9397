//! What happens in a run besides steps.

use serde::{Deserialize, Serialize};

use crate::documented::documented;

documented! {
    /// Something that happened: a line of `events.jsonl`.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Event {
        /// Optimizer steps done when it happened; it never falls within a run.
        pub step: u64,
        /// When it happened, in seconds since 1970.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub time: f64,
        /// What happened, and the fields below.
        #[serde(flatten)]
        pub event: EventKind,
    }
}

documented! {
    /// What happened.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "event")]
    pub enum EventKind {
        /// Training starts from the first step.
        #[serde(rename = "run_started")]
        RunStarted {
            /// Ranks that train.
            ranks: usize,
            /// Optimizer steps of the whole run.
            steps: u64,
        },
        /// Training goes on from a checkpoint.
        #[serde(rename = "resumed")]
        Resumed {
            /// The checkpoint.
            path: String,
            /// Ranks that train.
            ranks: usize,
            /// Optimizer steps of the whole run.
            steps: u64,
        },
        /// The model was tested on held-out text.
        #[serde(rename = "evaluation")]
        Evaluation {
            /// Mean loss per token over all sources, in nats.
            #[serde(deserialize_with = "crate::number::null_is_nan")]
            loss: f64,
            /// Seconds it took.
            #[serde(deserialize_with = "crate::number::null_is_nan")]
            seconds: f64,
            /// Each source by itself, in the order of the config.
            sources: Vec<SourceEvaluation>,
        },
        /// A checkpoint is on disk.
        #[serde(rename = "checkpoint_saved")]
        CheckpointSaved {
            /// Where it is.
            path: String,
            /// Bytes of all its files.
            bytes: u64,
            /// Seconds from the start of the save to the durable commit.
            #[serde(deserialize_with = "crate::number::null_is_nan")]
            seconds: f64,
        },
        /// A checkpoint could not be written; training goes on.
        #[serde(rename = "checkpoint_failed")]
        CheckpointFailed {
            /// Why.
            reason: String,
        },
        /// Something the user should know; training goes on.
        #[serde(rename = "warning")]
        Warning {
            /// The rank that says it.
            rank: usize,
            /// What happened, and what to do.
            text: String,
        },
        /// Text generated from the model.
        #[serde(rename = "sample")]
        Sample {
            /// What the model was given.
            prompt: String,
            /// What it continued with.
            text: String,
        },
        /// The run ended on request before its last step.
        #[serde(rename = "stopped")]
        Stopped {
            /// The newest checkpoint.
            checkpoint: Option<String>,
        },
        /// The run did its last step.
        #[serde(rename = "finished")]
        Finished {
            /// Seconds since the workers started.
            #[serde(deserialize_with = "crate::number::null_is_nan")]
            seconds: f64,
            /// Tokens read since the workers started, over all ranks.
            tokens: u64,
        },
        /// The run gave up.
        #[serde(rename = "failed")]
        Failed {
            /// The rank that gave up first.
            rank: usize,
            /// Why.
            reason: String,
        },
    }
}

documented! {
    /// The validation of one source.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct SourceEvaluation {
        /// Name of the source.
        pub name: String,
        /// Mean loss per token, in nats.
        #[serde(deserialize_with = "crate::number::null_is_nan")]
        pub loss: f64,
        /// The loss in bits per byte of text; absent where only parts of a text are learned.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::number::null_is_some_nan")]
        pub bits_per_byte: Option<f64>,
        /// What a model would need that knows how frequent each token of this text is, but no
        /// context; in bits per byte of text; absent with the above.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::number::null_is_some_nan")]
        pub unigram_bits_per_byte: Option<f64>,
    }
}

impl Event {
    /// An event that happens now.
    pub fn now(step: u64, event: EventKind) -> Self {
        Self {
            step,
            time: crate::unix_time(),
            event,
        }
    }
}
