//! The launches of our own kernels, and which implementation computes a call.

use std::iter;

use candle_core::Tensor;
use cordee_memory::DType;

#[cfg(feature = "cudnn")]
use super::cudnn;
use super::{Attended, Gradients, Inputs, OP, Sizes};
use crate::{
    cuda::{Address, Arg, Gpu, Grid, Kernel, Resident, Rows, Source},
    error::{OpError, Result},
    sequences::Sequences,
};

pub(crate) static GENERAL: Source = Source {
    name: "attention",
    text: concat!(include_str!("common.cuh"), include_str!("general.cu")),
};

pub(crate) static TENSOR_CORES: Source = Source {
    name: "attention_tensor_cores",
    text: concat!(
        include_str!("../cuda/mma.cuh"),
        include_str!("common.cuh"),
        include_str!("tensor_cores.cu")
    ),
};

/// Threads of the blocks that sum dout * out.
const DELTA_THREADS: usize = 256;
/// Lanes of a warp.
const WARP: usize = 32;
/// What one access moves.
const VECTOR_BYTES: usize = 16;
/// Most of `head_dim`.
const LARGEST_HEAD: usize = 256;

/// What computes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Implementation {
    /// `general.cu`: every call.
    General {
        /// Rows and columns of scores that a block has at a time.
        tile: usize,
    },
    /// `tensor_cores.cu`: bf16, heads of 64 or 128.
    TensorCores,
}

/// The one place where it is chosen, after cuDNN.
fn implementation(gpu: &Gpu, operands: &[&Rows], sizes: &Sizes) -> Result<Implementation> {
    let width = sizes.dtype.size_in_bytes();
    let aligned = |operand: &&Rows| {
        let address = operand.address().get();
        address.is_multiple_of(VECTOR_BYTES as u64)
            && (operand.stride() * width).is_multiple_of(VECTOR_BYTES)
    };
    let fits = sizes.dtype == DType::Bf16 && matches!(sizes.head_dim, 64 | 128);
    if fits && operands.iter().all(aligned) {
        return Ok(Implementation::TensorCores);
    }
    let tile = [64, 32, 16].into_iter().find(|&tile| {
        let block = Implementation::General { tile }.block(Part::Keys, sizes.head_dim);
        block.shared <= gpu.facts().shared_memory
    });
    match tile {
        Some(tile) if sizes.head_dim <= LARGEST_HEAD => Ok(Implementation::General { tile }),
        _ => Err(OpError::Argument {
            op: OP.0,
            name: "head_dim",
            value: sizes.head_dim as f64,
            expected: "256 or less, and tiles that the shared memory of the GPU has room for",
        }),
    }
}

/// The kernels of an implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Forward,
    /// dq.
    Queries,
    /// dk and dv.
    Keys,
}

impl Part {
    fn function(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Queries => "backward_queries",
            Self::Keys => "backward_keys",
        }
    }
}

/// A block of a kernel.
struct Block {
    /// Tokens whose results it computes.
    tokens: usize,
    threads: usize,
    /// Bytes of shared memory.
    shared: usize,
}

impl Implementation {
    /// As the file of the kernels says.
    fn block(self, part: Part, head_dim: usize) -> Block {
        match self {
            Self::General { tile } => {
                let quads = head_dim.div_ceil(4);
                let row = 4 * (quads + 1 - quads % 2);
                let (tiles, scores) = match part {
                    Part::Forward => (2, 1),
                    Part::Queries => (4, 1),
                    Part::Keys => (4, 2),
                };
                Block {
                    tokens: tile,
                    threads: 256,
                    shared: 4 * tile * (tiles * row + scores * (tile + 4)),
                }
            }
            Self::TensorCores => {
                let (tokens, threads, rows, statistics) = match part {
                    Part::Forward => (128, 256, 128 + 4 * 64, 0),
                    Part::Queries => (64, 128, 2 * 64 + 4 * 64, 0),
                    Part::Keys => (64, 128, 2 * 64 + 4 * 64, 4 * 64),
                };
                Block {
                    tokens,
                    threads,
                    shared: 2 * head_dim * rows + 4 * statistics,
                }
            }
        }
    }

    fn kernel(self, gpu: &Gpu, sizes: &Sizes, function: &'static str) -> Result<Kernel> {
        let head_dim = ("HEAD_DIM", sizes.head_dim);
        match self {
            Self::General { tile } => {
                let definitions = [head_dim, ("TILE", tile)];
                gpu.kernel_with(OP, &GENERAL, sizes.dtype, &definitions, function)
            }
            Self::TensorCores => {
                gpu.kernel_with(OP, &TENSOR_CORES, sizes.dtype, &[head_dim], function)
            }
        }
    }
}

/// One call.
struct Call<'a> {
    gpu: &'a Gpu,
    sizes: &'a Sizes,
    q: Rows,
    k: Rows,
    v: Rows,
    /// The first token of each token's sequence, then the one after its last.
    documents: Option<Resident>,
    /// Tokens of each sequence, where there are no documents.
    len: usize,
    window: usize,
    scale: f64,
}

impl<'a> Call<'a> {
    fn read(gpu: &'a Gpu, inputs: &Inputs<'_>, sizes: &'a Sizes) -> Result<Self> {
        OP.numbers("q", inputs.q)?;
        let (documents, len) = match inputs.sequences {
            Sequences::Rows(len) => (None, len),
            Sequences::Documents(bounds) => (Some(gpu.words(OP, &of_tokens(bounds))?), 1),
        };
        Ok(Self {
            gpu,
            sizes,
            q: OP.rows(gpu, "q", inputs.q, sizes.dtype, &sizes.queries())?,
            k: OP.rows(gpu, "k", inputs.k, sizes.dtype, &sizes.keys())?,
            v: OP.rows(gpu, "v", inputs.v, sizes.dtype, &sizes.keys())?,
            documents,
            len,
            window: inputs.window.unwrap_or(usize::MAX),
            scale: inputs.scale,
        })
    }

    /// The same for cuDNN, which comes first where it can.
    #[cfg(feature = "cudnn")]
    fn for_cudnn(&self, inputs: &'a Inputs<'a>) -> cudnn::Call<'_> {
        cudnn::Call {
            gpu: self.gpu,
            sizes: self.sizes,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            sequences: inputs.sequences,
            window: inputs.window,
            scale: inputs.scale,
        }
    }

    /// Launches a kernel whose parameters differ from those of others in the tensors after q, k and
    /// v, and in the strides of what it writes.
    ///
    /// # Safety
    ///
    /// The tensors are those that the kernel takes there, of the shapes of this call.
    unsafe fn launch(
        &self,
        implementation: Implementation,
        part: Part,
        tensors: &[Address],
        strides: &[usize],
    ) -> Result<()> {
        let Sizes {
            tokens,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self.sizes;
        let number = |size: usize| Arg::from(u32::try_from(size).unwrap_or(u32::MAX));
        let inputs = [&self.q, &self.k, &self.v];
        let mut args: Vec<Arg> = inputs.map(|input| input.address().into()).into();
        args.extend(tensors.iter().map(|&tensor| Arg::from(tensor)));
        args.push(self.documents.as_ref().map(Resident::address).into());
        args.extend([tokens, heads, kv_heads].map(number));
        args.extend(inputs.map(|input| number(input.stride())));
        args.extend(strides.iter().map(|&stride| number(stride)));
        args.extend([self.len, self.window].map(number));
        args.push((self.scale as f32).into());

        let block = implementation.block(part, head_dim);
        let heads = if part == Part::Keys { kv_heads } else { heads };
        let grid = Grid {
            shared: block.shared,
            ..Grid::new(heads * tokens.div_ceil(block.tokens), block.threads)
        };
        let kernel = implementation.kernel(self.gpu, self.sizes, part.function())?;
        // SAFETY: the inputs were checked, the documents are those of the tokens; the rest is the
        // caller's word.
        unsafe { kernel.launch(grid, &args) }
    }
}

/// The first token of each token's sequence, then the one after its last, for each token.
fn of_tokens(bounds: &[u32]) -> Vec<u32> {
    let sequences = || bounds.windows(2).map(|pair| (pair[0], pair[1]));
    let tokens = |(first, end): (u32, u32)| (end - first) as usize;
    let firsts = sequences().flat_map(|pair| iter::repeat_n(pair.0, tokens(pair)));
    let ends = sequences().flat_map(|pair| iter::repeat_n(pair.1, tokens(pair)));
    firsts.chain(ends).collect()
}

pub(super) fn forward(gpu: &Gpu, inputs: &Inputs<'_>, sizes: &Sizes) -> Result<Attended> {
    let call = Call::read(gpu, inputs, sizes)?;
    #[cfg(feature = "cudnn")]
    if let Some(attended) = cudnn::forward(&call.for_cudnn(inputs))? {
        return Ok(attended);
    }
    let implementation = implementation(gpu, &[&call.q, &call.k, &call.v], sizes)?;
    let out = gpu.empty(OP, sizes.dtype, &sizes.queries())?;
    let lse = gpu.empty(OP, DType::F32, &sizes.lse())?;
    let written = [out.address(), lse.address()];
    // SAFETY: out and lse are as large as the kernel expects them.
    unsafe { call.launch(implementation, Part::Forward, &written, &[])? };
    Ok(Attended {
        out: out.into_tensor(),
        lse: lse.into_tensor(),
    })
}

pub(super) fn backward(
    gpu: &Gpu,
    dout: &Tensor,
    inputs: &Inputs<'_>,
    attended: &Attended,
    sizes: &Sizes,
) -> Result<Gradients> {
    let call = Call::read(gpu, inputs, sizes)?;
    let gradient = OP.resident(gpu, "dout", dout, sizes.dtype, &sizes.queries())?;
    let out = OP.resident(gpu, "out", &attended.out, sizes.dtype, &sizes.queries())?;
    let lse = OP.resident(gpu, "lse", &attended.lse, DType::F32, &sizes.lse())?;
    #[cfg(feature = "cudnn")]
    if let Some(gradients) = cudnn::backward(&call.for_cudnn(inputs), &gradient, &out, &lse)? {
        return Ok(gradients);
    }
    let dout = OP.rows(
        gpu,
        "dout",
        gradient.tensor(),
        sizes.dtype,
        &sizes.queries(),
    )?;
    let implementation = implementation(gpu, &[&call.q, &call.k, &call.v, &dout], sizes)?;
    let delta = deltas(&call, implementation, &gradient, &out)?;
    let beside = Beside::new(gpu, sizes)?;
    let [dq, dk, dv] = beside.addresses;
    let read = [dout.address(), lse.address(), delta.address()];
    let tensors = [&read[..], &[dq]].concat();
    let stride = beside.stride;
    // SAFETY: the shapes of those that are read were checked; the new one is as large as expected.
    unsafe { call.launch(implementation, Part::Queries, &tensors, &[stride])? };
    let tensors = [&read[..], &[dk, dv]].concat();
    // SAFETY: as above.
    unsafe { call.launch(implementation, Part::Keys, &tensors, &[stride, stride])? };
    beside.finish(sizes)
}

/// The gradients of queries, keys and values, side by side in the rows of one tensor, so that who reads
/// all three reads one.
pub(super) struct Beside {
    all: Resident,
    /// Of dq, dk and dv.
    pub(super) addresses: [Address; 3],
    /// Elements from one token to the next.
    pub(super) stride: usize,
}

impl Beside {
    /// Yet to be written.
    pub(super) fn new(gpu: &Gpu, sizes: &Sizes) -> Result<Self> {
        let Sizes {
            dtype,
            tokens,
            heads,
            kv_heads,
            head_dim,
        } = *sizes;
        let all = gpu.empty(OP, dtype, &[tokens, heads + 2 * kv_heads, head_dim])?;
        let place = |heads: usize| all.address().plus(heads * head_dim, dtype);
        Ok(Self {
            addresses: [place(0), place(heads), place(heads + kv_heads)],
            stride: (heads + 2 * kv_heads) * head_dim,
            all,
        })
    }

    pub(super) fn finish(self, sizes: &Sizes) -> Result<Gradients> {
        let (all, heads, kv_heads) = (self.all.into_tensor(), sizes.heads, sizes.kv_heads);
        let part = |first, count| {
            let part = all.narrow(1, first, count);
            part.map_err(|source| OP.tensor_error(source))
        };
        Ok(Gradients {
            dq: part(0, heads)?,
            dk: part(heads, kv_heads)?,
            dv: part(heads + kv_heads, kv_heads)?,
        })
    }
}

/// The sums over each head of dout * out, `[heads, tokens]`.
fn deltas(
    call: &Call<'_>,
    implementation: Implementation,
    dout: &Resident,
    out: &Resident,
) -> Result<Resident> {
    let sizes = call.sizes;
    let delta = call.gpu.empty(OP, DType::F32, &sizes.lse())?;
    let kernel = implementation.kernel(call.gpu, sizes, "deltas")?;
    let pieces = sizes
        .head_dim
        .div_ceil(VECTOR_BYTES / sizes.dtype.size_in_bytes());
    let lanes = pieces.next_power_of_two().clamp(4, WARP);
    let blocks = (sizes.heads * sizes.tokens).div_ceil(DELTA_THREADS / lanes);
    let tensors = [dout, out, &delta].map(Arg::from);
    let counts = [sizes.tokens, sizes.heads].map(|size| Arg::from(size as u32));
    // SAFETY: the three have the shapes that were checked, and were asked for, above.
    unsafe {
        kernel.launch(
            Grid::new(blocks, DELTA_THREADS),
            &[&tensors[..], &counts].concat(),
        )?;
    };
    Ok(delta)
}
