//! Weights in Hugging Face's layout: a directory with `model.safetensors`, or with several such
//! files and an index.
//!
//! Tensors are read a piece at a time at their positions, and never mapped: a mapping of a file on
//! a network file system is slow, and turns a lost server into a signal.

mod read;
mod stored;
mod write;

pub use read::load;
pub use write::{FileType, save};

/// The file of a model in one file.
const SINGLE_FILE: &str = "model.safetensors";
/// Which file of several holds which tensor.
const INDEX_FILE: &str = "model.safetensors.index.json";
