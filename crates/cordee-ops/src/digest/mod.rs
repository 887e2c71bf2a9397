//! A number of what memory holds, computed where it is: by which ranks find out whether they hold the
//! same bits. Not against malice.
//!
//! Each 8 bytes are mixed with their place, by a bijection, and the results are added modulo 2^64. One
//! word that differs always shows, more of them all but once in 2^64; the order of the sum does not matter.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use cordee_memory::Buffer;

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    operand::Operator,
};

const OP: Operator = Operator("digest");

/// The number of all bytes of a buffer. Waits for the device that it is on, of which nothing is copied.
pub fn digest(buffer: &Buffer) -> Result<u64> {
    let memory_error = |source| OpError::Memory { op: OP.0, source };
    #[cfg(feature = "cuda")]
    {
        let all = buffer.view(0..buffer.len(), &[buffer.len()]);
        let all = all.map_err(memory_error)?;
        if let Some(gpu) = Gpu::of_view(&all) {
            return cuda::digest(&gpu, all);
        }
    }
    Ok(cpu::digest(buffer.as_bytes().map_err(memory_error)?))
}
