//! Numbers that go into both ways of computing, and what comes out of the fast one.

use candle_core::{DType as TensorType, Tensor};
use cordee_memory::{Buffer, DType, Layout, View, ViewMut};

use super::Setting;
use crate::{
    error::{OpError, Result},
    operand::Operator,
    random::{Stream, normal_fill},
};

const OP: Operator = Operator("conformance");

/// Normal deviates that `f32` holds exactly, the same for the same name.
pub(crate) fn normals(name: &str, count: usize) -> Vec<f64> {
    let mut values = vec![0.0_f32; count];
    let mut view = view_mut(&mut values, &[count]);
    normal_fill(&mut view, Stream::named(0, name), 0, 1.0).expect("1 is a standard deviation");
    values.into_iter().map(f64::from).collect()
}

/// A parameter, or its gradient, where the case runs.
pub(super) struct Held {
    buffer: Buffer,
    shape: Vec<usize>,
}

impl Held {
    pub(super) fn view(&self) -> View<'_> {
        self.buffer
            .view(0..self.buffer.len(), &self.shape)
            .expect("the shape is that of the values")
    }

    pub(super) fn view_mut(&mut self) -> ViewMut<'_> {
        let all = 0..self.buffer.len();
        self.buffer
            .view_mut(all, &self.shape)
            .expect("the shape is that of the values")
    }

    /// Matrices of so many rows each, one after the other in memory, to write.
    pub(super) fn parts_mut(&mut self, rows: &[usize]) -> Vec<ViewMut<'_>> {
        let width = self.shape[1];
        let tensors = rows
            .iter()
            .enumerate()
            .map(|(index, &rows)| (index.to_string(), vec![rows, width]));
        let layout = Layout::new(self.buffer.dtype(), tensors).expect("names differ");
        assert_eq!(layout.len(), self.buffer.len(), "they leave no gaps");
        let views = self.buffer.views_mut(layout.slots());
        views.expect("the layout is that of the buffer")
    }

    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        self.view().to_bytes().map_err(memory_error)
    }

    /// The numbers, of which there are as many as there were.
    pub(super) fn values(&self) -> Result<Vec<f64>> {
        let view = self.view();
        let read = match view.dtype() {
            DType::Bf16 => view
                .to_vec::<half::bf16>()
                .map(|values| values.into_iter().map(half::bf16::to_f64).collect()),
            DType::F32 => view
                .to_vec::<f32>()
                .map(|values| values.into_iter().map(f64::from).collect()),
            DType::F64 => view.to_vec::<f64>(),
        };
        read.map_err(memory_error)
    }
}

impl Setting {
    /// The nearest number that weights and activations can be.
    fn round(&self, value: f64) -> f64 {
        match self.numbers {
            // Not from_f64, which leaves out the lower half of the number's bits.
            DType::Bf16 => half::bf16::from_f32(value as f32).to_f64(),
            _ => f64::from(value as f32),
        }
    }

    /// Normal deviates that weights and activations hold exactly, the same for the same name.
    pub(super) fn normals(&self, name: &str, count: usize) -> Vec<f64> {
        self.affine(normals(name, count), 1.0, 0.0)
    }

    /// The numbers times `scale` plus `offset`, rounded so that weights and activations hold them
    /// exactly.
    pub(super) fn affine(&self, values: Vec<f64>, scale: f64, offset: f64) -> Vec<f64> {
        let round = |value: f64| self.round(value * scale + offset);
        values.into_iter().map(round).collect()
    }

    /// A tensor of activations.
    pub(super) fn tensor(&self, values: &[f64], shape: &[usize]) -> Result<Tensor> {
        let device = self.device.candle();
        Tensor::from_vec(single(values), shape, &candle_core::Device::Cpu)
            .and_then(|tensor| match self.numbers {
                DType::Bf16 => tensor.to_dtype(TensorType::BF16),
                _ => Ok(tensor),
            })
            .and_then(|tensor| tensor.to_device(&device))
            .map_err(tensor_error)
    }

    /// A parameter.
    pub(super) fn parameter(&self, values: &[f64], shape: &[usize]) -> Result<Held> {
        self.held(values, shape, self.numbers)
    }

    /// A gradient of a parameter, or the optimizer's state: `f32` whatever the parameter is.
    pub(super) fn state(&self, values: &[f64], shape: &[usize]) -> Result<Held> {
        self.held(values, shape, DType::F32)
    }

    /// A sum, or what is made of sums.
    pub(super) fn sum(&self, value: f64) -> Result<Held> {
        self.held(&[value], &[1], DType::F64)
    }

    fn held(&self, values: &[f64], shape: &[usize], dtype: DType) -> Result<Held> {
        let fill = || {
            let mut host = Buffer::zeroed(dtype, values.len())?;
            match dtype {
                DType::Bf16 => {
                    for (to, &from) in host.as_mut_slice()?.iter_mut().zip(values) {
                        *to = half::bf16::from_f32(from as f32);
                    }
                }
                DType::F32 => host.as_mut_slice()?.copy_from_slice(&single(values)),
                DType::F64 => host.as_mut_slice()?.copy_from_slice(values),
            }
            Ok(host)
        };
        let host = fill().map_err(memory_error)?;
        let mut buffer = self.device.zeroed(dtype, values.len())?;
        buffer.copy_from_host(&host).map_err(memory_error)?;
        let shape = shape.to_vec();
        Ok(Held { buffer, shape })
    }
}

fn memory_error(source: cordee_memory::MemoryError) -> OpError {
    OpError::Memory { op: OP.0, source }
}

fn tensor_error(source: candle_core::Error) -> OpError {
    OpError::Tensor {
        op: OP.0,
        source: Box::new(source),
    }
}

/// Numbers that `f32` holds, in it.
pub(super) fn single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// The numbers of a tensor, wherever it is.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor
        .to_device(&candle_core::Device::Cpu)
        .and_then(|tensor| tensor.to_dtype(TensorType::F64)?.flatten_all()?.to_vec1())
        .map_err(tensor_error)
}

/// Memory of the host, to write.
pub(super) fn view_mut<'a>(values: &'a mut [f32], shape: &[usize]) -> ViewMut<'a> {
    ViewMut::from_slice(values, shape).expect("the shape is that of the slice")
}

/// `values` plus `more`, element by element: what a gradient holds after it was added to.
pub(super) fn sum(values: &[f64], more: &[f64]) -> Vec<f64> {
    values.iter().zip(more).map(|(a, b)| a + b).collect()
}
