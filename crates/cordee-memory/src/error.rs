//! What can go wrong with memory.

use std::{io, ops::Range};

use crate::{ALIGNMENT, DType, MAX_DIMENSIONS};

/// An operation on memory that could not be done; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Memory was read or written as another type than it holds.
    #[error("expected {expected} but the memory holds {found}")]
    DType {
        /// The type asked for.
        expected: DType,
        /// The type of the memory.
        found: DType,
    },
    /// A shape and a number of elements that do not go together.
    #[error("shape {shape:?} does not describe {len} elements")]
    Shape {
        /// The shape.
        shape: Vec<usize>,
        /// Elements there are.
        len: usize,
    },
    /// More dimensions than a view carries.
    #[error("shape {shape:?} has more than {MAX_DIMENSIONS} dimensions")]
    Dimensions {
        /// The shape.
        shape: Vec<usize>,
    },
    /// Elements outside a buffer.
    #[error("elements {range:?} are not inside a buffer of {len} elements")]
    Range {
        /// The elements asked for.
        range: Range<usize>,
        /// Elements of the buffer.
        len: usize,
    },
    /// Two tensors of one layout with the same name.
    #[error("tensor `{name}` appears twice in one layout")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Writable views of two tensors that share elements.
    #[error("tensors `{first}` and `{second}` overlap: a writable view must be the only one")]
    Overlap {
        /// The tensor that lies first.
        first: String,
        /// The tensor that begins before the first one ends.
        second: String,
    },
    /// A size that does not fit in the address space.
    #[error("`{what}` is larger than the address space")]
    TooLarge {
        /// The tensor or buffer.
        what: String,
    },
    /// The heap has no room.
    #[error(
        "cannot allocate {bytes} bytes: use more ranks, a smaller model or a machine with more memory"
    )]
    Allocation {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A place in shared memory that does not begin at a multiple of [`ALIGNMENT`].
    #[error("byte offset {offset} in shared memory is not a multiple of {ALIGNMENT}")]
    Misaligned {
        /// The offset.
        offset: usize,
    },
    /// Bytes outside a mapping.
    #[error("bytes {range:?} are not inside a mapping of {len} bytes")]
    OutsideMapping {
        /// The bytes asked for.
        range: Range<usize>,
        /// Bytes of the mapping.
        len: usize,
    },
    /// A file descriptor that is not the memory that ranks share.
    #[error("the file descriptor of the shared memory is something else: {reason}")]
    NotSharedMemory {
        /// How that was seen.
        reason: &'static str,
    },
    /// Memory of a device was asked for a slice, or memory of the host for an address on a device.
    #[error("the memory is {found}, and has to be {expected} for this")]
    Place {
        /// Where it is.
        found: &'static str,
        /// Where it has to be.
        expected: &'static str,
    },
    /// A device refused.
    #[error("{action} of {bytes} bytes on the device: {why}")]
    Device {
        /// What was asked of it.
        action: &'static str,
        /// Bytes it was about.
        bytes: usize,
        /// Its answer.
        why: String,
    },
    /// A queue of a device refused.
    #[error("{action}: {why}")]
    Queue {
        /// What was asked of it.
        action: &'static str,
        /// Its answer.
        why: String,
    },
    /// The system refused.
    #[error("{call} on shared memory, {bytes} bytes: {source}")]
    System {
        /// Name of the system call.
        call: &'static str,
        /// Bytes it was about.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
}
