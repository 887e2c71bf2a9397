//! One launch; the sums of its blocks are added on the host.

use cordee_memory::{DType, View};

use super::OP;
use crate::{
    cuda::{Arg, Gpu, Grid, Source},
    error::{OpError, Result},
};

pub(crate) static SOURCE: Source = Source {
    name: "digest",
    text: include_str!("kernels.cu"),
};

const THREADS: usize = 256;

/// Most blocks: as many as any GPU has running at once.
const MOST_BLOCKS: usize = 2048;

/// Bytes that a block reads at a time.
const STRETCH: usize = 16 * THREADS;

pub(super) fn digest(gpu: &Gpu, all: View<'_>) -> Result<u64> {
    let memory_error = |source| OpError::Memory { op: OP.0, source };
    let bytes = all.len() * all.dtype().size_in_bytes();
    let memory = OP.parameter(gpu, "buffer", all, all.dtype(), all.shape())?;
    let blocks = bytes.div_ceil(STRETCH).clamp(1, MOST_BLOCKS);
    // Words of 64 bits, which have no type of their own here.
    let mut sums = gpu.zeroed(DType::F64, blocks)?;
    let mut view = sums.view_mut(0..blocks, &[blocks]).map_err(memory_error)?;
    let target = OP.parameter_mut(gpu, "sums", &mut view, DType::F64, &[blocks])?;
    let args: [Arg; 3] = [memory.into(), (bytes as u64).into(), target.into()];
    let kernel = gpu.kernel(OP, &SOURCE, DType::F32, "digest")?;
    // SAFETY: a buffer has that many bytes and begins at a multiple of 256; there is a sum for each block.
    unsafe { kernel.launch(Grid::new(blocks, THREADS), &args)? };
    let sums = view.as_view().to_bytes().map_err(memory_error)?;
    let (sums, _) = sums.as_chunks::<8>();
    let sums = sums.iter().map(|sum| u64::from_le_bytes(*sum));
    Ok(sums.fold(0, u64::wrapping_add))
}
