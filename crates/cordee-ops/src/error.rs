//! What can go wrong in an operator: always the caller's shapes, types or indices.

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, OpError>;

/// A call that an operator refuses. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// An operand of the wrong shape.
    #[error("{op}: `{operand}` has shape {found:?}, expected {expected}")]
    Shape {
        /// Name of the operator.
        op: &'static str,
        /// Name of the operand.
        operand: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have, in words or numbers.
        expected: String,
    },
    /// An operand whose elements are of another type than the rest.
    #[error("{op}: `{operand}` holds {found}, expected {expected}")]
    DType {
        /// Name of the operator.
        op: &'static str,
        /// Name of the operand.
        operand: &'static str,
        /// Type of its elements.
        found: String,
        /// The type it should hold.
        expected: &'static str,
    },
    /// An operand that is not in the host's memory.
    #[error("{op}: `{operand}` is not on the CPU, the only device this operator runs on")]
    Device {
        /// Name of the operator.
        op: &'static str,
        /// Name of the operand.
        operand: &'static str,
    },
    /// A token that the vocabulary does not have.
    #[error(
        "{op}: token {token} at index {index} is outside a vocabulary of {vocab}: was the data \
         made with the tokenizer of this model?"
    )]
    Token {
        /// Name of the operator.
        op: &'static str,
        /// The token.
        token: u32,
        /// Where it stands in the slice of tokens.
        index: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A position that the rotary table does not reach.
    #[error(
        "{op}: position {position} of token {index} is outside a table of {max_positions} \
         positions: make the table longer or the sequence shorter"
    )]
    Position {
        /// Name of the operator.
        op: &'static str,
        /// The position.
        position: usize,
        /// Index of the token.
        index: usize,
        /// Positions of the table.
        max_positions: usize,
    },
    /// A bound of documents that does not lie where one can.
    #[error("{op}: document bound {index} is {found}, expected {expected}")]
    Bound {
        /// Name of the operator.
        op: &'static str,
        /// Index of the bound.
        index: usize,
        /// The bound.
        found: u32,
        /// Where it should lie.
        expected: String,
    },
    /// A number that makes no sense for the operator.
    #[error("{op}: `{name}` is {value}, expected {expected}")]
    Argument {
        /// Name of the operator.
        op: &'static str,
        /// Name of the argument.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it should be.
        expected: &'static str,
    },
    /// The tensor library failed, mostly for want of memory.
    #[error("{op}: {source}")]
    Tensor {
        /// Name of the operator.
        op: &'static str,
        /// Its error; boxed because it is large.
        source: Box<candle_core::Error>,
    },
}
