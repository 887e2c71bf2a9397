//! Products of matrices on a GPU: by cuBLASLt, and by a kernel of our own where that has no
//! algorithm. Sums are f32 in either, never TF32.

mod blas;
pub(crate) mod plain;
#[cfg(test)]
mod tests;

use cordee_memory::DType;

pub(super) use blas::{Blas, CANDIDATES};

use super::{Address, Gpu};
use crate::{error::Result, matrix::Write, operand::Operator};

/// How the elements of a matrix lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    dtype: DType,
    rows: usize,
    columns: usize,
    /// Elements from one row to the next; from one column to the next, if transposed.
    stride: usize,
    transposed: bool,
}

/// A matrix in the memory of a GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    address: Address,
    layout: Layout,
}

impl Matrix {
    /// Rows and columns, one row after the other.
    pub(crate) fn new(address: Address, dtype: DType, [rows, columns]: [usize; 2]) -> Self {
        let layout = Layout {
            dtype,
            rows,
            columns,
            stride: columns,
            transposed: false,
        };
        Self { address, layout }
    }

    /// The same, with rows that begin every `stride` elements: a part of wider rows.
    pub(crate) fn strided(mut self, stride: usize) -> Self {
        assert!(
            !self.layout.transposed && stride >= self.layout.columns,
            "rows of {} elements do not fit into a stride of {stride}",
            self.layout.columns
        );
        self.layout.stride = stride;
        self
    }

    /// Rows and columns exchanged; nothing moves.
    pub(crate) fn transposed(mut self) -> Self {
        let layout = &mut self.layout;
        (layout.rows, layout.columns) = (layout.columns, layout.rows);
        layout.transposed = !layout.transposed;
        self
    }

    /// Elements from one row to the next, and from one column to the next.
    fn strides(self) -> [usize; 2] {
        if self.layout.transposed {
            [1, self.layout.stride]
        } else {
            [self.layout.stride, 1]
        }
    }
}

/// A matrix beside the product, of its shape and type: what GELU is applied to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Auxiliary {
    /// Where it begins.
    pub(crate) address: Address,
    /// Elements from one row to the next. cuBLASLt wants a multiple of 8.
    pub(crate) stride: usize,
}

/// What is done with a product before it is written. Biases and their gradients have as many
/// elements as the product has columns, unless said otherwise, and its type. GELU is the tanh form.
///
/// Gradients of biases *replace* what was there and are of the product's type: cuBLASLt cannot add
/// them to an f32 gradient, which is why `linear::backward_bias` has kernels of its own.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the operators so far need a bias at most")
)]
pub(crate) enum Epilogue {
    None,
    /// Adds a bias to each row.
    Bias {
        bias: Address,
    },
    /// Keeps the product in `input` and writes its GELU.
    Gelu {
        input: Auxiliary,
    },
    /// Adds a bias, keeps the sum in `input` and writes its GELU.
    BiasGelu {
        bias: Address,
        input: Auxiliary,
    },
    /// Multiplies by the slope of GELU at `input`.
    GeluGradient {
        input: Auxiliary,
    },
    /// The same, and writes the sums of the columns of what came out.
    GeluBiasGradient {
        input: Auxiliary,
        dbias: Address,
    },
    /// Writes the sums of the rows of `left`, an element for each row of the product: where the
    /// product is the gradient of a weight, dy^T x, that of its bias.
    BiasGradient {
        dbias: Address,
    },
}

impl Epilogue {
    fn bias(self) -> Option<Address> {
        match self {
            Self::Bias { bias } | Self::BiasGelu { bias, .. } => Some(bias),
            _ => None,
        }
    }

    fn dbias(self) -> Option<Address> {
        match self {
            Self::GeluBiasGradient { dbias, .. } | Self::BiasGradient { dbias } => Some(dbias),
            _ => None,
        }
    }

    fn input(self) -> Option<Auxiliary> {
        match self {
            Self::Gelu { input }
            | Self::BiasGelu { input, .. }
            | Self::GeluGradient { input }
            | Self::GeluBiasGradient { input, .. } => Some(input),
            _ => None,
        }
    }
}

/// What a product is added to, before the epilogue.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Onto {
    Nothing,
    /// What its destination holds.
    Itself,
    /// A matrix of the size, type and stride of the destination.
    Other(Address),
}

impl From<Write> for Onto {
    fn from(write: Write) -> Self {
        match write {
            Write::Replace => Self::Nothing,
            Write::Add => Self::Itself,
        }
    }
}

/// `to` = `left` `right` + `onto`, and then the epilogue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// Rows x inner, bf16 or f32.
    pub(crate) left: Matrix,
    /// Inner x columns, of the same type.
    pub(crate) right: Matrix,
    /// Rows x columns, not transposed, of that type or f32. A sum in bf16 is rounded once more for
    /// each product that is added.
    pub(crate) to: Matrix,
    /// What it is added to.
    pub(crate) onto: Onto,
    /// What is done before writing.
    pub(crate) epilogue: Epilogue,
}

impl Product {
    /// Where what it is added to begins.
    fn added(&self) -> Option<Address> {
        match self.onto {
            Onto::Nothing => None,
            Onto::Itself => Some(self.to.address),
            Onto::Other(address) => Some(address),
        }
    }

    /// Rows, columns, and the inner dimension.
    fn sizes(&self) -> [usize; 3] {
        let (left, right, to) = (self.left.layout, self.right.layout, self.to.layout);
        assert!(
            left.rows == to.rows && left.columns == right.rows && right.columns == to.columns,
            "a product of {left:?} and {right:?} is not {to:?}"
        );
        assert!(
            left.dtype == right.dtype && (to.dtype == left.dtype || to.dtype == DType::F32),
            "no product of {} and {} is {}",
            left.dtype.name(),
            right.dtype.name(),
            to.dtype.name()
        );
        assert!(!to.transposed, "a product is written row by row");
        [to.rows, to.columns, left.columns]
    }

    /// What an error says was asked for.
    fn action(&self) -> String {
        let name = |matrix: Matrix| {
            let Layout { rows, columns, .. } = matrix.layout;
            let transposed = if matrix.layout.transposed {
                " transposed"
            } else {
                ""
            };
            format!(
                "[{rows}, {columns}] {}{transposed}, stride {}",
                matrix.layout.dtype.name(),
                matrix.layout.stride
            )
        };
        format!(
            "multiplying ({}) by ({}) into ({})",
            name(self.left),
            name(self.right),
            name(self.to)
        )
    }
}

/// Asks for a product; nothing is waited for.
///
/// # Safety
///
/// Every address of `product` is one of `gpu`, with the elements that its sizes and strides say
/// behind it; what is written is nobody else's.
pub(crate) unsafe fn multiply(gpu: &Gpu, op: Operator, product: &Product) -> Result<()> {
    // cuBLASLt knows no empty matrices.
    let empty = product.sizes().contains(&0);
    // SAFETY: the caller's word.
    unsafe {
        if !empty && gpu.blas(op)?.multiply(gpu, op, product)? {
            return Ok(());
        }
        plain::multiply(gpu, op, product)
    }
}
