//! Decoder families as segments, in single-device code.
//!
//! A model here is an embedding, a row of blocks and a head. Each has a forward and a backward of
//! its own and is lent its weights for the length of one call. This crate must not know how many
//! ranks there are, where weights live between calls, what is recomputed, or how they are updated:
//! all of that is decided in `cordee-train`.

#![forbid(unsafe_code)]

mod candle_segment;
mod embedding;
mod error;
mod families;
mod generate;
mod head;
mod layers;
mod model;
mod parameter;
mod segment;
pub mod weights;

pub use candle_segment::{CandleLayer, CandleSegment};
pub use embedding::Embedding;
pub use error::ModelError;
pub use generate::{Sampling, generate, last_logits};
pub use head::Head;
pub use model::Model;
pub use parameter::{Init, Parameter};
pub use segment::{Context, Gradients, Keep, Reached, Saved, Segment, Weights};
