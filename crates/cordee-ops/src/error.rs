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
    /// The host was asked to compute in bf16.
    #[error("{op}: bf16 is for GPUs; the CPU computes in f32: set `precision.compute = \"f32\"`")]
    HostBf16 {
        /// Name of the operator.
        op: &'static str,
    },
    /// A GPU that cannot be used.
    #[error("GPU {ordinal}: {why}")]
    Gpu {
        /// Its number, from 0.
        ordinal: usize,
        /// What the driver or a library said.
        why: String,
    },
    /// A GPU or one of its libraries refused.
    #[error("{op}: {action}: {why}")]
    Cuda {
        /// Name of the operator.
        op: &'static str,
        /// What was asked for, with sizes.
        action: String,
        /// The answer.
        why: String,
    },
    /// The GPU has no room.
    #[error(
        "{op}: the GPU has no room for {bytes} bytes: {free} of {total} are free, {held} are held by \
         this process"
    )]
    OutOfMemory {
        /// Name of the operator.
        op: &'static str,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that nobody holds.
        free: usize,
        /// Bytes of the GPU.
        total: usize,
        /// Bytes that this process has.
        held: usize,
    },
    /// Memory that is not where the operator computes, or cannot be reached.
    #[error("{op}: {source}")]
    Memory {
        /// Name of the operator.
        op: &'static str,
        /// What the memory said.
        source: cordee_memory::MemoryError,
    },
    /// An operand that is not where the others are.
    #[error("{op}: `{operand}` is not on the device of the other operands")]
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
