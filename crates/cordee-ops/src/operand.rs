//! Reading and checking what a public function is given, and making what it returns.

use std::{marker::PhantomData, ops::Deref, ops::Range};

use candle_core::{Device, Storage, StorageRef, Tensor};
use cordee_memory::{DType, MemoryError, View, ViewMut};

use crate::{
    error::{OpError, Result},
    float::Float,
    timing::{self, Pass, Scope},
};

/// Calls a function generic over [`Float`] with the type that a [`DType`] names.
macro_rules! with_float {
    ($dtype:expr, $float:ident => $call:expr) => {
        match $dtype {
            cordee_memory::DType::Bf16 => {
                return Err(crate::error::OpError::HostBf16 { op: OP.0 });
            }
            cordee_memory::DType::F32 => {
                type $float = f32;
                $call
            }
            cordee_memory::DType::F64 => {
                type $float = f64;
                $call
            }
        }
    };
}
pub(crate) use with_float;

/// An operator's name, with which it checks its operands.
#[derive(Clone, Copy)]
pub(crate) struct Operator(pub(crate) &'static str);

/// A contiguous tensor on the CPU, whose elements can be read after [`Operand::lock`].
pub(crate) struct Operand<T> {
    op: Operator,
    name: &'static str,
    tensor: Tensor,
    elements: PhantomData<T>,
}

/// The elements of a tensor, for as long as it is locked against writing.
pub(crate) struct Locked<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    elements: PhantomData<T>,
}

impl<T: Float> Operand<T> {
    /// Locks the elements for reading.
    pub(crate) fn lock(&self) -> Result<Locked<'_, T>> {
        let (storage, layout) = self.tensor.storage_and_layout();
        let on_host = match &*storage {
            Storage::Cpu(cpu) => cpu.as_slice::<T>().is_ok(),
            _ => {
                return Err(OpError::Device {
                    op: self.op.0,
                    operand: self.name,
                });
            }
        };
        if !on_host {
            let found = self.tensor.dtype().as_str();
            return Err(self.op.dtype_error::<T>(self.name, found));
        }
        let start = layout.start_offset();
        let range = start..start + layout.shape().elem_count();
        Ok(Locked {
            storage,
            range,
            elements: PhantomData,
        })
    }
}

impl<T: Float> Deref for Locked<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let Storage::Cpu(cpu) = &*self.storage else {
            unreachable!("`lock` takes tensors on the CPU only");
        };
        &cpu.as_slice::<T>().expect("`lock` checked the type")[self.range.clone()]
    }
}

impl Operator {
    /// Times the call that holds the result.
    pub(crate) fn timed(self, pass: Pass) -> Scope {
        timing::scope(self.0, pass)
    }

    fn dtype_error<T: Float>(self, operand: &'static str, found: &str) -> OpError {
        let expected = <T as cordee_memory::Element>::DTYPE.name();
        OpError::DType {
            op: self.0,
            operand,
            found: found.to_owned(),
            expected,
        }
    }

    /// Why memory that was to be the host's, and of `T`, is refused.
    fn memory_error<T: Float>(
        self,
        operand: &'static str,
        found: DType,
        source: &MemoryError,
    ) -> OpError {
        match source {
            MemoryError::Place { .. } => OpError::Device {
                op: self.0,
                operand,
            },
            _ => self.dtype_error::<T>(operand, found.name()),
        }
    }

    /// The type of a tensor's elements, if operators compute in it.
    pub(crate) fn dtype(self, operand: &'static str, tensor: &Tensor) -> Result<DType> {
        match tensor.dtype() {
            candle_core::DType::BF16 => Ok(DType::Bf16),
            candle_core::DType::F32 => Ok(DType::F32),
            candle_core::DType::F64 => Ok(DType::F64),
            other => Err(OpError::DType {
                op: self.0,
                operand,
                found: other.as_str().to_owned(),
                expected: "bf16, f32 or f64",
            }),
        }
    }

    /// An error about a shape.
    pub(crate) fn shape_error(
        self,
        operand: &'static str,
        found: &[usize],
        expected: impl Into<String>,
    ) -> OpError {
        OpError::Shape {
            op: self.0,
            operand,
            found: found.to_vec(),
            expected: expected.into(),
        }
    }

    /// Checks a shape.
    pub(crate) fn expect_shape(
        self,
        operand: &'static str,
        found: &[usize],
        expected: &[usize],
    ) -> Result<()> {
        if found == expected {
            Ok(())
        } else {
            Err(self.shape_error(operand, found, format!("{expected:?}")))
        }
    }

    /// Checks the length of a slice that has an element for each of `expected` tokens.
    pub(crate) fn expect_len(
        self,
        operand: &'static str,
        found: usize,
        expected: usize,
    ) -> Result<()> {
        self.expect_shape(operand, &[found], &[expected])
    }

    /// The shape of a tensor or view of `N` dimensions, of which only the first may be 0;
    /// `expected` names them in an error.
    pub(crate) fn sizes<const N: usize>(
        self,
        operand: &'static str,
        shape: &[usize],
        expected: &str,
    ) -> Result<[usize; N]> {
        match <[usize; N]>::try_from(shape) {
            Ok(sizes) if !sizes.iter().skip(1).any(|&size| size == 0) => Ok(sizes),
            _ => Err(self.shape_error(operand, shape, expected)),
        }
    }

    /// Rows of a tensor, and the elements of each in all dimensions but the first; `expected` names both in
    /// an error.
    pub(crate) fn rows_and_width(
        self,
        operand: &'static str,
        shape: &[usize],
        expected: &str,
    ) -> Result<[usize; 2]> {
        match shape {
            [rows, width @ ..] if !width.is_empty() && !width.contains(&0) => {
                Ok([*rows, width.iter().product()])
            }
            _ => Err(self.shape_error(operand, shape, expected)),
        }
    }

    /// The same elements as rows of one dimension.
    pub(crate) fn flat_rows(self, tensor: &Tensor, rows: usize) -> Result<Tensor> {
        if tensor.dims().len() == 2 {
            return Ok(tensor.clone());
        }
        let flat = tensor.reshape((rows, ()));
        flat.map_err(|source| self.tensor_error(source))
    }

    /// A tensor of the given shape, contiguous (copied where it is not).
    pub(crate) fn tensor<T: Float>(
        self,
        name: &'static str,
        tensor: &Tensor,
        shape: &[usize],
    ) -> Result<Operand<T>> {
        self.expect_shape(name, tensor.dims(), shape)?;
        let tensor = tensor
            .contiguous()
            .map_err(|source| self.tensor_error(source))?;
        Ok(Operand {
            op: self,
            name,
            tensor,
            elements: PhantomData,
        })
    }

    /// A parameter of the given shape.
    pub(crate) fn weight<'a, T: Float>(
        self,
        name: &'static str,
        view: View<'a>,
        shape: &[usize],
    ) -> Result<&'a [T]> {
        self.expect_shape(name, view.shape(), shape)?;
        let dtype = view.dtype();
        view.as_slice()
            .map_err(|source| self.memory_error::<T>(name, dtype, &source))
    }

    /// A parameter's gradient of the given shape.
    pub(crate) fn gradient<'a, T: Float>(
        self,
        name: &'static str,
        view: &'a mut ViewMut<'_>,
        shape: &[usize],
    ) -> Result<&'a mut [T]> {
        self.expect_shape(name, view.shape(), shape)?;
        let dtype = view.dtype();
        view.as_mut_slice()
            .map_err(|source| self.memory_error::<T>(name, dtype, &source))
    }

    /// A new tensor that takes `elements` over without a copy.
    pub(crate) fn output<T: Float>(self, elements: Vec<T>, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(elements, shape, &Device::Cpu).map_err(|source| self.tensor_error(source))
    }

    pub(crate) fn tensor_error(self, source: candle_core::Error) -> OpError {
        OpError::Tensor {
            op: self.0,
            source: Box::new(source),
        }
    }

    /// Checks that every token is in the vocabulary, those of them for which `counts` is true.
    pub(crate) fn expect_tokens(
        self,
        tokens: &[u32],
        vocab: usize,
        counts: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let outside = |&(index, &token): &(usize, &u32)| token as usize >= vocab && counts(index);
        match tokens.iter().enumerate().find(outside) {
            None => Ok(()),
            Some((index, &token)) => Err(OpError::Token {
                op: self.0,
                token,
                index,
                vocab,
            }),
        }
    }
}
