//! Products by a kernel of our own, for any sizes.

use cordee_memory::DType;

use super::{Epilogue, Product};
use crate::{
    cuda::{Address, Arg, Gpu, Grid, Source},
    error::Result,
    operand::Operator,
};

pub(crate) static SOURCE: Source = Source {
    name: "product",
    text: include_str!("kernels.cu"),
};

// As in `kernels.cu`.
const THREADS: usize = 256;
const TILE: usize = 64;
const BIAS: u32 = 1;
const GELU: u32 = 2;
const GELU_GRADIENT: u32 = 4;

/// Asks for a product, some sizes of which may be 0.
///
/// # Safety
///
/// As for [`super::multiply`].
pub(super) unsafe fn multiply(gpu: &Gpu, op: Operator, product: &Product) -> Result<()> {
    let [rows, columns, inner] = product.sizes();
    let numbers = product.left.layout.dtype;
    let output = product.to.layout.dtype;
    let function = if output == numbers {
        "product_element"
    } else {
        "product_f32"
    };
    let kernel = gpu.kernel(op, &SOURCE, numbers, function)?;
    let blocks = rows.div_ceil(TILE) * columns.div_ceil(TILE);
    let flags = match product.epilogue {
        Epilogue::None | Epilogue::BiasGradient { .. } => 0,
        Epilogue::Bias { .. } => BIAS,
        Epilogue::Gelu { .. } => GELU,
        Epilogue::BiasGelu { .. } => BIAS | GELU,
        Epilogue::GeluGradient { .. } | Epilogue::GeluBiasGradient { .. } => GELU_GRADIENT,
    };
    let [left_row, left_inner] = product.left.strides();
    let [right_inner, right_column] = product.right.strides();
    let [to_row, _] = product.to.strides();
    let input = product.epilogue.input();
    let arguments: [Arg; 16] = [
        product.left.address.into(),
        stride(left_row),
        stride(left_inner),
        product.right.address.into(),
        stride(right_inner),
        stride(right_column),
        product.to.address.into(),
        stride(to_row),
        size(rows),
        size(columns),
        size(inner),
        product.added().into(),
        flags.into(),
        product.epilogue.bias().into(),
        input.map(|input| input.address).into(),
        stride(input.map_or(0, |input| input.stride)),
    ];
    // SAFETY: a block for each tile; addresses and strides are the caller's word.
    unsafe { kernel.launch(Grid::new(blocks, THREADS), &arguments)? };
    let sums = match product.epilogue {
        Epilogue::BiasGradient { dbias } => Sums {
            source: product.left.address,
            source_type: numbers,
            strides: [left_row, left_inner],
            to: dbias,
            sizes: [rows, inner],
        },
        Epilogue::GeluBiasGradient { dbias, .. } => Sums {
            source: product.to.address,
            source_type: output,
            strides: [1, to_row],
            to: dbias,
            sizes: [columns, rows],
        },
        _ => return Ok(()),
    };
    // SAFETY: the source is a matrix of the product.
    unsafe { sums.launch(gpu, op, [numbers, output]) }
}

/// Sums of the rows or columns of a matrix.
struct Sums {
    source: Address,
    source_type: DType,
    /// Elements from one sum to the next, and from one summand to the next.
    strides: [usize; 2],
    to: Address,
    /// Sums, and summands of each.
    sizes: [usize; 2],
}

impl Sums {
    /// # Safety
    ///
    /// Source and destination have the elements that sizes and strides say.
    unsafe fn launch(&self, gpu: &Gpu, op: Operator, [numbers, output]: [DType; 2]) -> Result<()> {
        let function = if output == numbers {
            "sum_elements"
        } else if self.source_type == numbers {
            "sum_elements_f32"
        } else {
            "sum_f32"
        };
        let kernel = gpu.kernel(op, &SOURCE, numbers, function)?;
        let [length, count] = self.sizes;
        let arguments = [
            self.source.into(),
            stride(self.strides[0]),
            stride(self.strides[1]),
            self.to.into(),
            size(length),
            size(count),
        ];
        // SAFETY: a thread for each sum; the rest is the caller's word.
        unsafe { kernel.launch(Grid::new(length.div_ceil(THREADS), THREADS), &arguments) }
    }
}

fn stride(elements: usize) -> Arg {
    (elements as u64).into()
}

fn size(size: usize) -> Arg {
    u32::try_from(size)
        .expect("no matrix has 2^32 rows or columns")
        .into()
}
