//! Random numbers by their place: element i of a stream depends on the seed, the stream and i
//! alone, never on what was drawn before or on which thread draws it.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod philox;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use cordee_memory::ViewMut;

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    operand::{Operator, with_float},
    timing::Pass,
};

const OP: Operator = Operator("random");

/// An endless sequence of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    seed: u64,
    id: u64,
}

impl Stream {
    /// The stream with this number under a seed.
    pub fn new(seed: u64, id: u64) -> Self {
        Self { seed, id }
    }

    /// The stream with this name under a seed; its number is the name's 64-bit FNV-1a hash.
    pub fn named(seed: u64, name: &str) -> Self {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let id = name.bytes().fold(OFFSET, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        });
        Self { seed, id }
    }

    /// Seed and number, as kernels take them.
    #[cfg(feature = "cuda")]
    pub(crate) fn parts(self) -> [u64; 2] {
        [self.seed, self.id]
    }

    /// Numbers 4 `index` to 4 `index` + 3 of the stream, uniform over all 32-bit numbers.
    pub fn block(self, index: u64) -> [u32; 4] {
        philox::block(self.seed, [index, self.id])
    }
}

/// Fills `values` with normal deviates of mean 0 and standard deviation `std`: element i is deviate
/// `first` + i of the stream. On a GPU `bf16` or `f32`.
pub fn normal_fill(values: &mut ViewMut<'_>, stream: Stream, first: u64, std: f64) -> Result<()> {
    let _timed = OP.timed(Pass::Forward);
    if !(std.is_finite() && std >= 0.0) {
        let expected = "a number that is 0 or more";
        return Err(OpError::Argument {
            op: OP.0,
            name: "std",
            value: std,
            expected,
        });
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&values.as_view()) {
        return cuda::normal_fill(&gpu, values, stream, first, std);
    }
    let shape = values.shape().to_vec();
    with_float!(values.dtype(), T => {
        let values = OP.gradient::<T>("values", values, &shape)?;
        cpu::normal_fill(values, stream, first, std);
        Ok(())
    })
}
