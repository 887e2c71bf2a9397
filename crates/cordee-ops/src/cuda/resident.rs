//! Operands on a GPU: where they are, checked.

use candle_core::{DType as TensorType, Tensor};
use cordee_memory::{DType, View, ViewMut};

use super::Gpu;
use crate::{
    error::{OpError, Result},
    operand::Operator,
};

/// Where something is on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(super) u64);

impl Address {
    /// As a number, for libraries.
    pub(crate) fn get(self) -> u64 {
        self.0
    }

    /// The address of the element `count` further.
    pub(crate) fn plus(self, count: usize, dtype: DType) -> Self {
        Self(self.0 + (count * dtype.size_in_bytes()) as u64)
    }
}

/// A contiguous tensor on a GPU, and where it begins. The memory of a tensor is freed in the order of
/// the stream: it has to live until the launch that uses it was asked for, not until it ran.
#[derive(Debug)]
pub(crate) struct Resident {
    tensor: Tensor,
    address: Address,
}

impl Resident {
    pub(super) fn new(
        gpu: &Gpu,
        op: Operator,
        operand: &'static str,
        tensor: Tensor,
    ) -> Result<Self> {
        let address = gpu.address_of(op, operand, &tensor)?;
        Ok(Self { tensor, address })
    }

    /// The same tensor once more; nothing is copied.
    pub(super) fn again(&self) -> Self {
        Self {
            tensor: self.tensor.clone(),
            address: self.address,
        }
    }

    pub(crate) fn address(&self) -> Address {
        self.address
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// Rows on a GPU: what the first dimension of a tensor counts. Each is contiguous, and they may lie
/// apart, as parts of the rows of a wider tensor do.
#[derive(Debug)]
pub(crate) struct Rows {
    resident: Resident,
    stride: usize,
}

impl Rows {
    /// Where the first begins.
    pub(crate) fn address(&self) -> Address {
        self.resident.address
    }

    /// Elements from one to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        self.resident.tensor
    }
}

impl Operator {
    /// The rows of a tensor of the given type and shape on `gpu`; copied where a row is not contiguous.
    pub(crate) fn rows(
        self,
        gpu: &Gpu,
        operand: &'static str,
        tensor: &Tensor,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Rows> {
        let width: usize = shape.iter().skip(1).product();
        let (strides, mut below) = (tensor.stride(), 1);
        let mut contiguous = tensor.dims() == shape && !shape.is_empty();
        for (&stride, &size) in strides.iter().zip(shape).skip(1).rev() {
            contiguous &= stride == below || size == 1;
            below *= size;
        }
        if !contiguous || strides[0] < width {
            let resident = self.resident(gpu, operand, tensor, dtype, shape)?;
            return Ok(Rows {
                resident,
                stride: width,
            });
        }
        self.expect_tensor_type(operand, tensor, dtype)?;
        Ok(Rows {
            stride: strides[0],
            resident: Resident::new(gpu, self, operand, tensor.clone())?,
        })
    }

    /// A tensor of the given type and shape on `gpu`, contiguous (copied where it is not).
    pub(crate) fn resident(
        self,
        gpu: &Gpu,
        operand: &'static str,
        tensor: &Tensor,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Resident> {
        self.expect_shape(operand, tensor.dims(), shape)?;
        self.expect_tensor_type(operand, tensor, dtype)?;
        let tensor = tensor.contiguous().map_err(|source| OpError::Tensor {
            op: self.0,
            source: Box::new(source),
        })?;
        Resident::new(gpu, self, operand, tensor)
    }

    fn expect_tensor_type(
        self,
        operand: &'static str,
        tensor: &Tensor,
        dtype: DType,
    ) -> Result<()> {
        let expected = match dtype {
            DType::Bf16 => TensorType::BF16,
            DType::F32 => TensorType::F32,
            DType::F64 => TensorType::F64,
        };
        if tensor.dtype() == expected {
            return Ok(());
        }
        Err(OpError::DType {
            op: self.0,
            operand,
            found: tensor.dtype().as_str().to_owned(),
            expected: dtype.name(),
        })
    }

    /// The numbers that a GPU computes in: those of a tensor of weights or activations.
    pub(crate) fn numbers(self, operand: &'static str, tensor: &Tensor) -> Result<DType> {
        self.expect_numbers(operand, self.dtype(operand, tensor)?)
    }

    /// The same, of a parameter.
    pub(crate) fn numbers_of_view(self, operand: &'static str, view: &View<'_>) -> Result<DType> {
        self.expect_numbers(operand, view.dtype())
    }

    fn expect_numbers(self, operand: &'static str, dtype: DType) -> Result<DType> {
        if dtype == DType::F64 {
            return Err(OpError::DType {
                op: self.0,
                operand,
                found: dtype.name().to_owned(),
                expected: "bf16 or f32 on a GPU",
            });
        }
        Ok(dtype)
    }

    /// A parameter of the given type and shape on `gpu`.
    pub(crate) fn parameter(
        self,
        gpu: &Gpu,
        operand: &'static str,
        view: View<'_>,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Address> {
        self.expect_shape(operand, view.shape(), shape)?;
        if view.dtype() != dtype {
            return Err(OpError::DType {
                op: self.0,
                operand,
                found: view.dtype().name().to_owned(),
                expected: dtype.name(),
            });
        }
        let here = Gpu::of_view(&view).is_some_and(|owner| owner.is(gpu));
        match view.device() {
            Some(range) if here => Ok(Address(range.address())),
            _ => Err(OpError::Device {
                op: self.0,
                operand,
            }),
        }
    }

    /// What a parameter's gradient, or the optimizer's state, is written to.
    pub(crate) fn parameter_mut(
        self,
        gpu: &Gpu,
        operand: &'static str,
        view: &mut ViewMut<'_>,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Address> {
        self.parameter(gpu, operand, view.as_view(), dtype, shape)
    }
}
