//! The launch, and the table on a GPU.

use candle_core::{Device, Tensor};
use cordee_memory::DType;

use super::{OP, Table, To};
use crate::{
    cuda::{Arg, Blocks, Gpu, Resident, RowVector, Source},
    error::{OpError, Result},
    sequences::Sequences,
};

pub(crate) static SOURCE: Source = Source {
    name: "rotary",
    text: include_str!("kernels.cu"),
};

/// How far, which way, and where to.
pub(super) struct Turn<'a> {
    pub(super) table: &'a Table,
    /// 1 or -1.
    pub(super) direction: f64,
    pub(super) to: To,
}

/// `x` is `[tokens, heads, head_dim]`, and may be a part of wider rows.
pub(super) fn rotate(
    gpu: &Gpu,
    x: &Tensor,
    sequences: Sequences<'_>,
    turn: &Turn<'_>,
    [tokens, heads]: [usize; 2],
) -> Result<Tensor> {
    let table = turn.table;
    let (numbers, half) = (OP.numbers("x", x)?, table.head_dim() / 2);
    let shape = [tokens, heads, table.head_dim()];
    let x = OP.rows(gpu, "x", x, numbers, &shape)?;
    let new = match turn.to {
        To::New => Some(gpu.empty(OP, numbers, &shape)?),
        To::Itself => None,
    };
    let (y, y_stride) = match &new {
        Some(new) => (new.address(), heads * 2 * half),
        None => (x.address(), x.stride()),
    };
    let waves = table.on_gpu(gpu)?;
    let sines = waves
        .address()
        .plus(table.max_positions() * half, DType::F32);
    let (positions, len) = positions(gpu, sequences, tokens)?;

    let widths = [half, x.stride()];
    let vector = RowVector::new(numbers, &widths, &[x.address(), y, waves.address(), sines]);
    let kernel = gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), "rotate")?;
    let blocks = Blocks::new(tokens, heads * half / vector.count());
    let args: [Arg; 13] = [
        x.address().into(),
        y.into(),
        (&waves).into(),
        sines.into(),
        positions.as_ref().map(Resident::address).into(),
        (tokens as u32).into(),
        (len as u32).into(),
        (heads as u32).into(),
        (half as u32).into(),
        (x.stride() as u64).into(),
        (y_stride as u64).into(),
        (blocks.rows as u32).into(),
        (turn.direction as f32).into(),
    ];
    // SAFETY: x and y are [tokens, heads, 2 half] with these strides, and no position is outside of the
    // table.
    unsafe { kernel.launch(blocks.grid, &args)? };
    Ok(new.map_or_else(|| x.into_tensor(), Resident::into_tensor))
}

/// The position of each token; of rows of one length, that length instead.
fn positions(
    gpu: &Gpu,
    sequences: Sequences<'_>,
    tokens: usize,
) -> Result<(Option<Resident>, usize)> {
    match sequences {
        Sequences::Rows(len) => Ok((None, len)),
        Sequences::Documents(_) => {
            let positions = sequences.positions(0..tokens);
            let words: Vec<u32> = positions.map(|position| position as u32).collect();
            Ok((Some(gpu.words(OP, &words)?), 0))
        }
    }
}

impl Table {
    /// Cosines, and behind them sines: `[2, max_positions, half]`, computed in `f64` and rounded to
    /// `f32`. They are uploaded once.
    fn on_gpu(&self, gpu: &Gpu) -> Result<Resident> {
        let shape = [2, self.max_positions(), self.head_dim() / 2];
        let waves = self.uploaded(gpu, || {
            let waves = self.waves::<f32>();
            let both = [&waves.cos[..], &waves.sin].concat();
            let device = Device::Cuda(gpu.device().clone());
            let uploaded = Tensor::from_slice(&both, &shape, &device);
            // The driver may read what it copies after the call that asked for it; this is done once.
            gpu.synchronise(OP.0)?;
            uploaded.map_err(|source| OpError::Tensor {
                op: OP.0,
                source: Box::new(source),
            })
        })?;
        OP.resident(gpu, "table", &waves, DType::F32, &shape)
    }
}
