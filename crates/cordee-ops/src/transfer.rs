//! Between flat memory and tensors, and from a device to the host: what user-written layers and
//! whoever reads results need, outside of any operator.

use candle_core::{DType as TensorType, Device as TensorDevice, Tensor, WithDType};
use cordee_memory::{DType, Element, View, ViewMut};

#[cfg(feature = "cuda")]
use crate::cuda::{Arg, Gpu, Grid, Source};
use crate::{
    error::{OpError, Result},
    operand::Operator,
};

const OP: Operator = Operator("transfer");

#[cfg(feature = "cuda")]
pub(crate) static SOURCE: Source = Source {
    name: "transfer",
    text: include_str!("transfer.cu"),
};

/// A copy of the elements as a tensor of the same shape, on the device that they are on.
pub fn to_tensor(view: View<'_>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&view) {
        let (dtype, shape) = (view.dtype(), view.shape());
        let source = OP.parameter(&gpu, "view", view, dtype, shape)?;
        let copy = gpu.empty(OP, dtype, shape)?;
        gpu.copy(OP, source, &copy, view.len() * dtype.size_in_bytes())?;
        return Ok(copy.into_tensor());
    }
    match view.dtype() {
        DType::Bf16 => copied::<half::bf16>(view),
        DType::F32 => copied::<f32>(view),
        DType::F64 => copied::<f64>(view),
    }
}

fn copied<T: Element + WithDType>(view: View<'_>) -> Result<Tensor> {
    let elements = view.as_slice::<T>().map_err(memory_error)?;
    Tensor::from_slice(elements, view.shape(), &TensorDevice::Cpu).map_err(tensor_error)
}

/// Adds a tensor to memory of the same shape, on the device that both are on. The memory of a GPU
/// is `f32`, whatever the tensor is; on the host both are of one type.
pub fn add(view: &mut ViewMut<'_>, tensor: &Tensor) -> Result<()> {
    let shape = view.shape().to_vec();
    OP.expect_shape("tensor", tensor.dims(), &shape)?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&view.as_view()) {
        const THREADS: usize = 256;
        let numbers = OP.numbers("tensor", tensor)?;
        let sum = OP.parameter_mut(&gpu, "view", view, DType::F32, &shape)?;
        let tensor = OP.resident(&gpu, "tensor", tensor, numbers, &shape)?;
        let count = shape.iter().product::<usize>();
        let kernel = gpu.kernel(OP, &SOURCE, numbers, "add")?;
        let grid = Grid::new(count.div_ceil(THREADS), THREADS);
        let args: [Arg; 3] = [sum.into(), (&tensor).into(), (count as u64).into()];
        // SAFETY: two arrays of `count` elements, and a thread for each.
        return unsafe { kernel.launch(grid, &args) };
    }
    match view.dtype() {
        DType::Bf16 => add_on_host::<half::bf16>(view, tensor),
        DType::F32 => add_on_host::<f32>(view, tensor),
        DType::F64 => add_on_host::<f64>(view, tensor),
    }
}

fn add_on_host<T: Element + WithDType>(view: &mut ViewMut<'_>, tensor: &Tensor) -> Result<()> {
    let summands = tensor
        .flatten_all()
        .and_then(|tensor| tensor.to_vec1::<T>());
    let summands = summands.map_err(tensor_error)?;
    let sums = view.as_mut_slice::<T>().map_err(memory_error)?;
    for (sum, summand) in sums.iter_mut().zip(summands) {
        *sum += summand;
    }
    Ok(())
}

/// Sets every element of memory to `value`, on the device that it is on.
pub fn fill(view: &mut ViewMut<'_>, value: f32) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&view.as_view()) {
        const THREADS: usize = 256;
        let (numbers, count) = (OP.numbers_of_view("view", &view.as_view())?, view.len());
        let shape = view.shape().to_vec();
        let elements = OP.parameter_mut(&gpu, "view", view, numbers, &shape)?;
        let kernel = gpu.kernel(OP, &SOURCE, numbers, "fill")?;
        let grid = Grid::new(count.div_ceil(THREADS), THREADS);
        let args: [Arg; 3] = [elements.into(), (count as u64).into(), value.into()];
        // SAFETY: an array of `count` elements, and a thread for each.
        return unsafe { kernel.launch(grid, &args) };
    }
    match view.dtype() {
        DType::Bf16 => {
            let value = half::bf16::from_f32(value);
            view.as_mut_slice().map(|elements| elements.fill(value))
        }
        DType::F32 => view.as_mut_slice().map(|elements| elements.fill(value)),
        DType::F64 => {
            let value = f64::from(value);
            view.as_mut_slice().map(|elements| elements.fill(value))
        }
    }
    .map_err(memory_error)
}

/// The elements of a tensor of any shape, wherever it is. Waits for the device, if it is on one.
pub fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    let host = tensor.to_device(&TensorDevice::Cpu).map_err(tensor_error)?;
    // A copy to pageable memory need not be done when the call that asked for it returns.
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(tensor) {
        gpu.synchronise(OP.0)?;
    }
    host.to_dtype(TensorType::F32)
        .and_then(|tensor| tensor.flatten_all()?.to_vec1())
        .map_err(tensor_error)
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
