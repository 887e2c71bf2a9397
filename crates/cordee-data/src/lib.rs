//! Text and examples to batches of tokens.
//!
//! [`prepare`] turns sources of text and of examples into a [`Corpus`]: held-out parts set apart, a
//! vocabulary trained where none is given, token shards in a cache that is keyed by content. Examples
//! are packed into rows there, with masks of what is learned and bounds that attention keeps. [`Loader`] reads
//! batches of it in an order that is a closed form of seed and position, so that there is no index
//! to build and no state to keep; [`Prefetch`] reads them ahead, [`Validation`] reads the held-out
//! part.
//!
//! It must not know what a model or a tensor is, nor how many ranks there are beyond
//! [`samples_for`].
#![forbid(unsafe_code)]

mod batch;
mod build;
mod cache;
mod chat;
mod companions;
mod corpus;
mod encode;
mod error;
mod example;
mod examples;
mod held_out;
mod loader;
mod manifest;
mod order;
mod pack;
mod packed;
mod pieces;
mod prefetch;
mod prepare;
mod reader;
mod shard;
mod spec;
mod split;
mod stat_index;
mod text;
mod tokenizer;
mod validation;

pub use batch::{Batch, BatchShape, samples_for};
pub use corpus::Corpus;
pub use error::DataError;
pub use example::ExampleKeys;
pub use loader::Loader;
pub use manifest::{Packed, Source, Split};
pub use order::{Order, Sample};
pub use prefetch::Prefetch;
pub use prepare::{Stage, prepare};
pub use spec::{Format, PrepareSpec, SourceSpec, Vocabulary};
pub use tokenizer::{END_OF_TEXT, Tokenizer};
pub use validation::Validation;
