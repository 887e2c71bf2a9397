//! The products by cuBLASLt, the sums of columns by kernels of our own. Sizes are `[n, in, out]`.

use candle_core::Tensor;
use cordee_memory::{DType, View, ViewMut};

use super::{Branch, Layer, OP, Outputs, Place, WeightGradient};
use crate::{
    cuda::{
        Address, Gpu, Grid, RowVector, Rows, Source,
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

/// Sizes are `[n, in]`.
pub(super) fn forward_together(
    gpu: &Gpu,
    x: &Tensor,
    layers: &[Layer<'_>],
    [n, input]: [usize; 2],
) -> Result<Outputs> {
    let numbers = OP.numbers("x", x)?;
    let x = OP.resident(gpu, "x", x, numbers, &[n, input])?;
    let (mut widths, mut runs) = (Vec::new(), Vec::<Run>::new());
    for layer in layers {
        let [output, _] = OP.sizes("weight", layer.weight.shape(), "[out, in]")?;
        let weight = OP.parameter(gpu, "weight", layer.weight, numbers, &[output, input])?;
        let bias = layer.bias;
        let bias = bias.map(|bias| OP.parameter(gpu, "bias", bias, numbers, &[output]));
        let run = Run {
            weight,
            bias: bias.transpose()?,
            outputs: output,
        };
        widths.push(output);
        match runs.last_mut() {
            Some(last) if last.goes_on(&run, input, numbers) => last.outputs += output,
            _ => runs.push(run),
        }
    }
    let width = widths.iter().sum::<usize>();
    let y = gpu.empty(OP, numbers, &[n, width])?;
    let mut column = 0;
    for run in runs {
        let to = Matrix::new(y.address().plus(column, numbers), numbers, [n, run.outputs]);
        let weight = Matrix::new(run.weight, numbers, [run.outputs, input]);
        let product = Product {
            left: Matrix::new(x.address(), numbers, [n, input]),
            right: weight.transposed(),
            to: to.strided(width),
            onto: Onto::Nothing,
            epilogue: run
                .bias
                .map_or(Epilogue::None, |bias| Epilogue::Bias { bias }),
        };
        // SAFETY: shapes were checked, and y is new and as wide as all of them.
        unsafe { multiply(gpu, OP, &product)? };
        column += run.outputs;
    }
    Ok(Outputs(Place::Beside {
        all: y.into_tensor(),
        widths,
    }))
}

/// Layers whose weights and biases follow each other in memory.
struct Run {
    weight: Address,
    bias: Option<Address>,
    outputs: usize,
}

impl Run {
    fn goes_on(&self, next: &Self, input: usize, numbers: DType) -> bool {
        let biases = match (self.bias, next.bias) {
            (None, None) => true,
            (Some(bias), Some(next)) => bias.plus(self.outputs, numbers) == next,
            _ => false,
        };
        biases && self.weight.plus(self.outputs * input, numbers) == next.weight
    }
}

/// Gradients of outputs that lie side by side, and weights or gradients of weights that follow each
/// other in memory.
#[derive(Clone, Copy)]
struct Beside {
    dy: Address,
    /// Elements from one row of dy to the next.
    stride: usize,
    weight: Address,
    outputs: usize,
}

impl Beside {
    fn new(dy: &Rows, weight: Address, outputs: usize) -> Self {
        Self {
            dy: dy.address(),
            stride: dy.stride(),
            weight,
            outputs,
        }
    }

    /// `dtypes` are those of dy, and of the weight or its gradient.
    fn goes_on(&self, next: &Self, input: usize, [numbers, weight]: [DType; 2]) -> bool {
        self.stride == next.stride
            && self.dy.plus(self.outputs, numbers) == next.dy
            && self.weight.plus(self.outputs * input, weight) == next.weight
    }

    fn dy(&self, n: usize, numbers: DType) -> Matrix {
        Matrix::new(self.dy, numbers, [n, self.outputs]).strided(self.stride)
    }
}

pub(super) fn backward_weights(
    gpu: &Gpu,
    x: &Tensor,
    gradients: &mut [WeightGradient<'_>],
    [n, input]: [usize; 2],
) -> Result<()> {
    let numbers = OP.numbers("x", x)?;
    let x = OP.resident(gpu, "x", x, numbers, &[n, input])?;
    // All are checked before any is computed; what is read lives until then.
    let (mut read, mut runs) = (Vec::new(), Vec::<(Beside, Write)>::new());
    for WeightGradient { dy, dweight, write } in gradients {
        let [output, _] = OP.sizes("dweight", dweight.shape(), "[out, in]")?;
        let dy = rows_of(gpu, dy, numbers, [n, output])?;
        let dweight = OP.parameter_mut(gpu, "dweight", dweight, DType::F32, &[output, input])?;
        let beside = Beside::new(&dy, dweight, output);
        read.push(dy);
        match runs.last_mut() {
            Some((last, same))
                if same == write && last.goes_on(&beside, input, [numbers, DType::F32]) =>
            {
                last.outputs += output;
            }
            _ => runs.push((beside, *write)),
        }
    }
    for (run, write) in runs {
        let product = Product {
            left: run.dy(n, numbers).transposed(),
            right: Matrix::new(x.address(), numbers, [n, input]),
            to: Matrix::new(run.weight, DType::F32, [run.outputs, input]),
            onto: write.into(),
            epilogue: Epilogue::None,
        };
        // SAFETY: shapes were checked, and the gradients are lent to this call alone.
        unsafe { multiply(gpu, OP, &product)? };
    }
    Ok(())
}

/// dy `[n, out]`, or with its columns in two dimensions.
fn rows_of(gpu: &Gpu, dy: &Tensor, numbers: DType, [n, output]: [usize; 2]) -> Result<Rows> {
    let [rows, width] = OP.rows_and_width("dy", dy.dims(), "[n, out]")?;
    if [rows, width] != [n, output] {
        return Err(OP.shape_error("dy", dy.dims(), format!("[{n}, {output}]")));
    }
    OP.rows(gpu, "dy", dy, numbers, dy.dims())
}

/// `n` and `input` are those of the first branch. In bf16 each product after the first rounds the sum
/// once more.
pub(super) fn backward_input(
    gpu: &Gpu,
    branches: &[Branch<'_>],
    [n, input]: [usize; 2],
) -> Result<Tensor> {
    let numbers = OP.numbers("dy", branches[0].dy)?;
    let dx = gpu.empty(OP, numbers, &[n, input])?;
    // All are checked before any is computed; what is read lives until then.
    let (mut read, mut runs) = (Vec::new(), Vec::<Beside>::new());
    for branch in branches {
        let [output, _] = OP.sizes("weight", branch.weight.shape(), "[out, in]")?;
        let dy = rows_of(gpu, branch.dy, numbers, [n, output])?;
        let weight = OP.parameter(gpu, "weight", branch.weight, numbers, &[output, input])?;
        let beside = Beside::new(&dy, weight, output);
        read.push(dy);
        match runs.last_mut() {
            Some(last) if last.goes_on(&beside, input, [numbers; 2]) => last.outputs += output,
            _ => runs.push(beside),
        }
    }
    for (index, run) in runs.iter().enumerate() {
        let product = Product {
            left: run.dy(n, numbers),
            right: Matrix::new(run.weight, numbers, [run.outputs, input]),
            to: Matrix::new(dx.address(), numbers, [n, input]),
            onto: if index > 0 {
                Onto::Itself
            } else {
                Onto::Nothing
            },
            epilogue: Epilogue::None,
        };
        // SAFETY: shapes were checked, the operands are alive, and dx is new.
        unsafe { multiply(gpu, OP, &product)? };
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
    let dy = rows_of(gpu, dy, numbers, [n, output])?;
    let dbias = OP.parameter_mut(gpu, "dbias", dbias, DType::F32, &[output])?;
    let rows = BLOCK_ROWS.max(n.div_ceil(MOST_BLOCKS));
    let blocks = n.div_ceil(rows);
    let partials = gpu.empty(OP, DType::F32, &[blocks, output])?;
    let vector = RowVector::new(numbers, &[output, dy.stride()], &[dy.address()]);
    let kernel = gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), "sum_rows")?;
    let grid = Grid {
        blocks: [output.div_ceil(WARP * vector.count()), blocks, 1],
        threads: THREADS,
        shared: 0,
    };
    let arguments = [
        dy.address().into(),
        (&partials).into(),
        (n as u32).into(),
        (output as u32).into(),
        (dy.stride() as u32).into(),
        (rows as u32).into(),
    ];
    // SAFETY: dy is [n, output] with that stride, partials has a row for each block of rows, and the gradient is lent
    // to this call alone.
    unsafe {
        kernel.launch(grid, &arguments)?;
        gpu.add_columns(OP, &partials, dbias)
    }
}
