//! The products by cuBLASLt, the sums of columns by kernels of our own. Sizes are `[n, in, out]`.

use candle_core::Tensor;
use cordee_memory::{DType, View, ViewMut};

use super::{Branch, OP};
use crate::{
    cuda::{
        Gpu, Grid, RowVector, Source,
        product::{Epilogue, Matrix, Onto, Product, multiply},
    },
    error::Result,
    matrix::Write,
};

pub(crate) static SOURCE: Source = Source {
    name: "linear",
    text: include_str!("kernels.cu"),
};

/// Rows of dy that a block sums, as long as there are not more blocks than [`MOST_BLOCKS`].
const BLOCK_ROWS: usize = 128;
/// Bounds the memory that the sums of blocks take.
const MOST_BLOCKS: usize = 512;
/// Threads of a block.
const THREADS: usize = 256;
/// Threads of a warp, each of which has one column or one vector of them.
const WARP: usize = 32;

pub(super) fn forward(
    gpu: &Gpu,
    x: &Tensor,
    (weight, bias): (View<'_>, Option<View<'_>>),
    residual: Option<&Tensor>,
    [n, input, output]: [usize; 3],
) -> Result<Tensor> {
    let numbers = OP.numbers("x", x)?;
    let x = OP.resident(gpu, "x", x, numbers, &[n, input])?;
    let weight = OP.parameter(gpu, "weight", weight, numbers, &[output, input])?;
    let bias = bias.map(|bias| OP.parameter(gpu, "bias", bias, numbers, &[output]));
    let bias = bias.transpose()?;
    let residual = residual
        .map(|residual| OP.resident(gpu, "residual", residual, numbers, &[n, output]))
        .transpose()?;
    let y = gpu.empty(OP, numbers, &[n, output])?;
    let product = Product {
        left: Matrix::new(x.address(), numbers, [n, input]),
        right: Matrix::new(weight, numbers, [output, input]).transposed(),
        to: Matrix::new(y.address(), numbers, [n, output]),
        onto: residual
            .as_ref()
            .map_or(Onto::Nothing, |residual| Onto::Other(residual.address())),
        epilogue: bias.map_or(Epilogue::None, |bias| Epilogue::Bias { bias }),
    };
    // SAFETY: shapes were checked, and y is new.
    unsafe { multiply(gpu, OP, &product)? };
    Ok(y.into_tensor())
}

pub(super) fn backward_weight(
    gpu: &Gpu,
    [dy, x]: [&Tensor; 2],
    dweight: &mut ViewMut<'_>,
    write: Write,
    [n, input, output]: [usize; 3],
) -> Result<()> {
    let numbers = OP.numbers("x", x)?;
    let dy = OP.resident(gpu, "dy", dy, numbers, &[n, output])?;
    let x = OP.resident(gpu, "x", x, numbers, &[n, input])?;
    let shape = [output, input];
    let dweight = OP.parameter_mut(gpu, "dweight", dweight, DType::F32, &shape)?;
    let product = Product {
        left: Matrix::new(dy.address(), numbers, [n, output]).transposed(),
        right: Matrix::new(x.address(), numbers, [n, input]),
        to: Matrix::new(dweight, DType::F32, shape),
        onto: write.into(),
        epilogue: Epilogue::None,
    };
    // SAFETY: shapes were checked, and the gradient is lent to this call alone.
    unsafe { multiply(gpu, OP, &product) }
}

/// `n` and `input` are those of the first branch. In bf16 each branch after the first rounds the sum
/// once more.
pub(super) fn backward_input(
    gpu: &Gpu,
    branches: &[Branch<'_>],
    [n, input]: [usize; 2],
) -> Result<Tensor> {
    let numbers = OP.numbers("dy", branches[0].dy)?;
    let dx = gpu.empty(OP, numbers, &[n, input])?;
    // All are checked before any is computed.
    let mut products = Vec::with_capacity(branches.len());
    for (index, branch) in branches.iter().enumerate() {
        let [output, _] = OP.sizes("weight", branch.weight.shape(), "[out, in]")?;
        let dy = OP.resident(gpu, "dy", branch.dy, numbers, &[n, output])?;
        let shape = [output, input];
        let weight = OP.parameter(gpu, "weight", branch.weight, numbers, &shape)?;
        let product = Product {
            left: Matrix::new(dy.address(), numbers, [n, output]),
            right: Matrix::new(weight, numbers, shape),
            to: Matrix::new(dx.address(), numbers, [n, input]),
            onto: if index > 0 {
                Onto::Itself
            } else {
                Onto::Nothing
            },
            epilogue: Epilogue::None,
        };
        products.push((dy, product));
    }
    for (_dy, product) in &products {
        // SAFETY: shapes were checked, the operands are alive, and dx is new.
        unsafe { multiply(gpu, OP, product)? };
    }
    Ok(dx.into_tensor())
}

pub(super) fn backward_bias(
    gpu: &Gpu,
    dy: &Tensor,
    dbias: &mut ViewMut<'_>,
    [n, output]: [usize; 2],
) -> Result<()> {
    let numbers = OP.numbers("dy", dy)?;
    let dy = OP.resident(gpu, "dy", dy, numbers, &[n, output])?;
    let dbias = OP.parameter_mut(gpu, "dbias", dbias, DType::F32, &[output])?;
    let rows = BLOCK_ROWS.max(n.div_ceil(MOST_BLOCKS));
    let blocks = n.div_ceil(rows);
    let partials = gpu.empty(OP, DType::F32, &[blocks, output])?;
    let vector = RowVector::new(numbers, &[output], &[dy.address()]);
    let kernel = gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), "sum_rows")?;
    let grid = Grid {
        blocks: [output.div_ceil(WARP * vector.count()), blocks, 1],
        threads: THREADS,
        shared: 0,
    };
    let arguments = [
        (&dy).into(),
        (&partials).into(),
        (n as u32).into(),
        (output as u32).into(),
        (rows as u32).into(),
    ];
    // SAFETY: dy is [n, output], partials has a row for each block of rows, and the gradient is lent
    // to this call alone.
    unsafe {
        kernel.launch(grid, &arguments)?;
        gpu.add_columns(OP, &partials, dbias)
    }
}
