//! Why something could not be measured.

use cordee_comm::CommError;
use cordee_memory::MemoryError;
use cordee_ops::OpError;

/// A measurement that did not come to its end. That is no finding: what was to be measured is
/// unknown.
#[derive(Debug, thiserror::Error)]
pub enum SmokeError {
    /// Ranks did not come together.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// There was no memory to measure with.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device refused.
    #[error(transparent)]
    Op(#[from] OpError),
}
