//! What can go wrong in a model.

use std::path::PathBuf;

use cordee_memory::MemoryError;
use cordee_ops::OpError;

/// An error of model code; below it lies the operator or the memory that refused.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An operator refused its input.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A view did not hold what was asked of it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A segment was handed what another one had kept.
    #[error("backward of {segment} was given what it did not keep")]
    Saved {
        /// The segment.
        segment: &'static str,
    },
    /// A batch whose sizes do not agree.
    #[error("batch of {tokens} tokens, but {found} {what}")]
    Batch {
        /// Input tokens.
        tokens: usize,
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
    },
    /// A model whose weights are no longer numbers.
    #[error("the model gives a logit that is not a number: its weights have diverged")]
    NotANumber,
    /// A file or a directory could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file that does not hold what it should.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Tensors of a directory that are not those of the model.
    #[error("the weights in {} are not those of the model: {}", directory.display(), problems.join("; "))]
    Weights {
        /// The directory.
        directory: PathBuf,
        /// What is wrong, by the names of tensors: never none.
        problems: Vec<String>,
    },
    /// A layer of candle operations that do not lead back to one of its parameters, or its input.
    #[error(
        "{layer} gives `{parameter}` no gradient: it is not used, or one of candle's operations behind it has no backward"
    )]
    NoGradient {
        /// The layer.
        layer: String,
        /// The parameter; `x` is the input.
        parameter: String,
    },
    /// A prompt of no tokens.
    #[error("the prompt is empty: give at least one token to continue")]
    EmptyPrompt,
}
