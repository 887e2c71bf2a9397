//! Calls of attention that cuDNN computes.

use cordee_memory::DType;

use super::{
    super::{Attended, Gradients, Layer, OP, Sizes, cuda::Beside},
    SOURCE,
    library::{Library, OPERANDS, Operand, Shape},
    plans::Planned,
};
use crate::{
    cuda::{Address, Gpu, Grid, Resident, Rows},
    error::{OpError, Result},
    sequences::Sequences,
};

/// Threads of a block that reorders a log-sum-exp.
const THREADS: usize = 256;
/// What a length is a multiple of: other lengths mean other plans, of which generation would make
/// one for each token; and before cuDNN 9.15.1 their backward needs CUDA's runtime library.
const LENGTHS: usize = 128;
/// What `head_dim` is a multiple of: cuDNN moves 16 bytes at a time.
const HEADS: usize = 8;
/// What addresses are a multiple of, for the same reason.
const ALIGNMENT: u64 = 16;
/// First compute capability whose tensor cores have bf16.
const OLDEST: (u32, u32) = (8, 0);

/// A call, checked.
pub(in crate::attention) struct Call<'a> {
    pub(in crate::attention) gpu: &'a Gpu,
    pub(in crate::attention) sizes: &'a Sizes,
    pub(in crate::attention) q: &'a Rows,
    pub(in crate::attention) k: &'a Rows,
    pub(in crate::attention) v: &'a Rows,
    pub(in crate::attention) sequences: Sequences<'a>,
    pub(in crate::attention) window: Option<usize>,
    pub(in crate::attention) scale: f64,
}

/// The forward; `None` where cuDNN does not compute this call.
pub(in crate::attention) fn forward(call: &Call<'_>) -> Result<Option<Attended>> {
    let Some((library, shape)) = call.shape(false, &[]) else {
        return Ok(None);
    };
    let Some(plan) = Planned::get(call.gpu, OP, library, shape)? else {
        return Ok(None);
    };
    let (gpu, sizes) = (call.gpu, call.sizes);
    let out = gpu.empty(OP, sizes.dtype, &sizes.queries())?;
    let lse = gpu.empty(OP, DType::F32, &sizes.lse())?;
    let written = [(Operand::Out, out.address()), (Operand::Lse, lse.address())];
    call.run(&plan, shape, &written)?;
    let lse = if shape.heads_first {
        lse
    } else {
        exchange(gpu, &lse, [shape.batch, shape.heads, shape.seq], sizes)?
    };
    Ok(Some(Attended {
        out: out.into_tensor(),
        lse: lse.into_tensor(),
    }))
}

/// The backward from `dout` and from what a forward gave; `None` where cuDNN does not compute it.
pub(in crate::attention) fn backward(
    call: &Call<'_>,
    dout: &Resident,
    out: &Resident,
    lse: &Resident,
) -> Result<Option<Gradients>> {
    let Some((library, shape)) = call.shape(true, &[dout, out]) else {
        return Ok(None);
    };
    let Some(plan) = Planned::get(call.gpu, OP, library, shape)? else {
        return Ok(None);
    };
    let (gpu, sizes) = (call.gpu, call.sizes);
    let order = [shape.heads, shape.batch, shape.seq];
    let reordered = (!shape.heads_first).then(|| exchange(gpu, lse, order, sizes));
    let reordered = reordered.transpose()?;
    let beside = Beside::new(gpu, sizes)?;
    let [dq, dk, dv] = beside.addresses;
    let operands = [
        (Operand::Dout, dout.address()),
        (Operand::Out, out.address()),
        (Operand::Lse, reordered.as_ref().unwrap_or(lse).address()),
        (Operand::Dq, dq),
        (Operand::Dk, dk),
        (Operand::Dv, dv),
    ];
    call.run(&plan, shape, &operands)?;
    beside.finish(sizes).map(Some)
}

/// Makes the plans of a layer's forward and backward in bf16, where cuDNN has them.
pub(in crate::attention) fn plan(gpu: &Gpu, layer: &Layer, sequences: [usize; 2]) -> Result<()> {
    for backward in [false, true] {
        if let Some((library, shape)) = shape(gpu, layer, sequences, backward) {
            Planned::get(gpu, OP, library, shape)?;
        }
    }
    Ok(())
}

/// What cuDNN would be asked for in bf16, for a number of sequences of a length; `None` where it is not asked.
fn shape(
    gpu: &Gpu,
    layer: &Layer,
    [batch, seq]: [usize; 2],
    backward: bool,
) -> Option<(&'static Library, Shape)> {
    let &Layer {
        heads,
        kv_heads,
        head_dim,
        scale,
        window,
        strides,
    } = layer;
    let (major, minor) = gpu.facts().compute_capability;
    let fits = (major, minor) >= OLDEST
        && batch > 0
        && seq.is_multiple_of(LENGTHS)
        && head_dim.is_multiple_of(HEADS);
    if !fits {
        return None;
    }
    let library = Library::get().ok()?;
    let shape = Shape {
        backward,
        batch,
        seq,
        heads,
        kv_heads,
        head_dim,
        window: window.filter(|&window| window < seq),
        scale: scale.to_bits(),
        compute_capability: 10 * major + minor,
        heads_first: batch == 1 || library.reads_strided_lse(),
        strides,
    };
    Some((library, shape))
}

impl Call<'_> {
    /// What cuDNN would be asked for; `None` where it is not asked.
    fn shape(&self, backward: bool, more: &[&Resident]) -> Option<(&'static Library, Shape)> {
        let sizes = self.sizes;
        let Sequences::Rows(seq) = self.sequences else {
            return None;
        };
        let operands = [self.q, self.k, self.v];
        let width = sizes.dtype.size_in_bytes() as u64;
        let mut places = operands
            .iter()
            .flat_map(|rows| [rows.address().get(), rows.stride() as u64 * width])
            .chain(more.iter().map(|operand| operand.address().get()));
        if sizes.dtype != DType::Bf16 || !places.all(|place| place.is_multiple_of(ALIGNMENT)) {
            return None;
        }
        let layer = Layer {
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            scale: self.scale,
            window: self.window,
            strides: operands.map(Rows::stride),
        };
        shape(self.gpu, &layer, [sizes.tokens / seq, seq], backward)
    }

    /// Runs a plan on the inputs and the operands of its pass.
    fn run(&self, plan: &Planned, shape: Shape, operands: &[(Operand, Address)]) -> Result<()> {
        let mut addresses = [0; OPERANDS];
        let inputs = [
            (Operand::Q, self.q.address()),
            (Operand::K, self.k.address()),
            (Operand::V, self.v.address()),
        ];
        for (operand, address) in inputs.iter().chain(operands) {
            addresses[*operand as usize] = address.get();
        }
        // Freed in the order of the stream, so that it need not live until the run is done.
        let words = plan.workspace().div_ceil(DType::F32.size_in_bytes());
        let workspace = self.gpu.empty(OP, DType::F32, &[words])?;
        // SAFETY: the operands are those of the pass, whose shapes were checked; those that are
        // written are new.
        unsafe { plan.run(&addresses, workspace.address().get()) }.map_err(|why| OpError::Cuda {
            op: OP.0,
            action: format!("cuDNN, {shape}"),
            why,
        })
    }
}

/// The log-sum-exp with its two outer dimensions exchanged, in the shape that ours has.
fn exchange(gpu: &Gpu, lse: &Resident, shape: [usize; 3], sizes: &Sizes) -> Result<Resident> {
    let to = gpu.empty(OP, DType::F32, &sizes.lse())?;
    let kernel = gpu.kernel(OP, &SOURCE, DType::F32, "exchange")?;
    let numbers = shape.map(|size| (size as u32).into());
    let arguments = [&[lse.into(), (&to).into()], &numbers[..]].concat();
    let blocks = shape.iter().product::<usize>().div_ceil(THREADS);
    // SAFETY: both have an element for each of the three sizes.
    unsafe { kernel.launch(Grid::new(blocks, THREADS), &arguments)? };
    Ok(to)
}
