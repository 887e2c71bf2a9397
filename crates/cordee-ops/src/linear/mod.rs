//! Linear layers, y = x W^T + b or without b, with weights as PyTorch lays them out: `[out, in]`.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use candle_core::Tensor;
use cordee_memory::{View, ViewMut};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    matrix::{Write, unwritten},
    operand::{Operand, Operator, with_float},
    timing::{Pass, Work},
};

const OP: Operator = Operator("linear");

/// Multiplies `x` `[n, in]` by the transpose of `weight` `[out, in]` and adds `bias` `[out]` to each
/// row: `[n, out]`. A `residual` `[n, out]` is added with no pass of its own: what a layer adds to the
/// residual stream is rounded once, with the sum.
pub fn forward(
    x: &Tensor,
    weight: View<'_>,
    bias: Option<View<'_>>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Forward);
    let [n, input] = OP.sizes("x", x.dims(), "[n, in]")?;
    let [output, _] = OP.sizes("weight", weight.shape(), "[out, in]")?;
    timed.does(Work::product([n, input, output]).moving(
        n * input + input * output + (1 + usize::from(residual.is_some())) * n * output,
        OP.dtype("x", x)?,
    ));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        let sizes = [n, input, output];
        return cuda::forward(&gpu, x, (weight, bias), residual, sizes);
    }
    with_float!(OP.dtype("x", x)?, T => {
        let x = OP.tensor::<T>("x", x, &[n, input])?;
        let weight = OP.weight::<T>("weight", weight, &[output, input])?;
        let bias = bias.map(|bias| OP.weight::<T>("bias", bias, &[output])).transpose()?;
        let residual = residual
            .map(|residual| OP.tensor::<T>("residual", residual, &[n, output]))
            .transpose()?;
        let residual = residual.as_ref().map(Operand::lock).transpose()?;
        let added = cpu::Added { bias, residual: residual.as_deref() };
        let y = cpu::forward(&x.lock()?, weight, &added, [n, input, output]);
        OP.output(y, &[n, output])
    })
}

/// A layer of those that read one input.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// `[out, in]`.
    pub weight: View<'a>,
    /// `[out]`.
    pub bias: Option<View<'a>>,
}

/// What several layers gave. On a GPU the outputs lie side by side in the rows of one tensor, so that one
/// product can write them, and their gradients be read by one.
#[derive(Clone, Debug)]
pub struct Outputs(Place);

#[derive(Clone, Debug)]
enum Place {
    Apart(Vec<Tensor>),
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "it is a GPU's"))]
    Beside {
        all: Tensor,
        widths: Vec<usize>,
    },
}

impl Outputs {
    /// That of layer `index`, `[n, out]`; nothing is copied.
    pub fn get(&self, index: usize) -> Result<Tensor> {
        self.heads(index, 1)?
            .squeeze(2)
            .map_err(|source| OP.tensor_error(source))
    }

    /// The same as heads, `[n, out / head_dim, head_dim]`.
    pub fn heads(&self, index: usize, head_dim: usize) -> Result<Tensor> {
        match &self.0 {
            Place::Apart(all) => {
                let one = &all[index];
                one.reshape((one.dims()[0], (), head_dim))
            }
            Place::Beside { all, widths } => {
                let first = widths[..index].iter().sum::<usize>();
                all.reshape((all.dims()[0], (), head_dim))
                    .and_then(|all| all.narrow(1, first / head_dim, widths[index] / head_dim))
            }
        }
        .map_err(|source| OP.tensor_error(source))
    }
}

/// The outputs of all `layers`, which read `x` `[n, in]`: queries, keys and values, or gate and up. On a
/// GPU neighbours whose weights follow each other in memory, and their biases too, are one product.
pub fn forward_together(x: &Tensor, layers: &[Layer<'_>]) -> Result<Outputs> {
    let mut timed = OP.timed(Pass::Forward);
    let [n, input] = OP.sizes("x", x.dims(), "[n, in]")?;
    timed.does(Work::moved(n * input, OP.dtype("x", x)?));
    for layer in layers {
        let [output, _] = OP.sizes("weight", layer.weight.shape(), "[out, in]")?;
        let numbers = layer.weight.dtype();
        timed.does(Work::product([n, input, output]).moving((n + input) * output, numbers));
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::forward_together(&gpu, x, layers, [n, input]);
    }
    let outputs = layers
        .iter()
        .map(|layer| forward(x, layer.weight, layer.bias, None));
    Ok(Outputs(Place::Apart(outputs.collect::<Result<_>>()?)))
}

/// The gradients of input and weight of one layer: returns that of `x` `[n, in]`, writes that of the
/// weight to `dweight` `[out, in]`.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    weight: View<'_>,
    dweight: &mut ViewMut<'_>,
    write: Write,
) -> Result<Tensor> {
    let _timed = OP.timed(Pass::Backward);
    // First what only returns: a call that is refused leaves `dweight` as it was.
    let dx = backward_input(&[Branch { dy, weight }])?;
    backward_weight(dy, x, dweight, write)?;
    Ok(dx)
}

/// Writes the weight's gradient dy^T x to `dweight` `[out, in]`, for `dy` `[n, out]` and `x`
/// `[n, in]`.
pub fn backward_weight(
    dy: &Tensor,
    x: &Tensor,
    dweight: &mut ViewMut<'_>,
    write: Write,
) -> Result<()> {
    let dweight = dweight.reborrow();
    backward_weights(x, &mut [WeightGradient { dy, dweight, write }])
}

/// A weight's gradient that is to be written.
#[derive(Debug)]
pub struct WeightGradient<'a> {
    /// Gradient of the layer's output, `[n, out]` or `[n, heads, out / heads]`.
    pub dy: &'a Tensor,
    /// Where to, `[out, in]`.
    pub dweight: ViewMut<'a>,
    /// Whether it is added to.
    pub write: Write,
}

/// [`backward_weight`] of all layers that read `x`. On a GPU neighbours whose dy lie side by side and whose
/// gradients follow each other in memory are one product.
pub fn backward_weights(x: &Tensor, gradients: &mut [WeightGradient<'_>]) -> Result<()> {
    let mut timed = OP.timed(Pass::Backward);
    let [n, input] = OP.sizes("x", x.dims(), "[n, in]")?;
    for gradient in &*gradients {
        let [output, _] = OP.sizes("dweight", gradient.dweight.shape(), "[out, in]")?;
        let passes = gradient.write.passes();
        timed.does(
            Work::product([output, n, input])
                .moving(n * (input + output), OP.dtype("x", x)?)
                .moving(passes * input * output, gradient.dweight.dtype()),
        );
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x) {
        return cuda::backward_weights(&gpu, x, gradients, [n, input]);
    }
    for WeightGradient { dy, dweight, write } in gradients {
        let [output, _] = OP.sizes("dweight", dweight.shape(), "[out, in]")?;
        with_float!(OP.dtype("x", x)?, T => {
            let dy = OP.tensor::<T>("dy", &OP.flat_rows(dy, n)?, &[n, output])?;
            let x = OP.tensor::<T>("x", x, &[n, input])?;
            let dweight = OP.gradient::<T>("dweight", dweight, &[output, input])?;
            cpu::backward_weight(&dy.lock()?, &x.lock()?, dweight, *write, [n, input, output]);
        });
    }
    Ok(())
}

/// Adds the bias's gradient, the sum of the rows of `dy` `[n, out]`, to `dbias` `[out]`.
pub fn backward_bias(dy: &Tensor, dbias: &mut ViewMut<'_>) -> Result<()> {
    let mut timed = OP.timed(Pass::Backward);
    let [n, output] = OP.rows_and_width("dy", dy.dims(), "[n, out]")?;
    timed.does(Work::moved(n * output, OP.dtype("dy", dy)?));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(dy) {
        return cuda::backward_bias(&gpu, dy, dbias, [n, output]);
    }
    with_float!(OP.dtype("dy", dy)?, T => {
        let dy = OP.tensor::<T>("dy", &OP.flat_rows(dy, n)?, &[n, output])?;
        let dbias = OP.gradient::<T>("dbias", dbias, &[output])?;
        cpu::backward_bias(&dy.lock()?, dbias);
        Ok(())
    })
}

/// One of the layers that read the same input.
#[derive(Clone, Copy, Debug)]
pub struct Branch<'a> {
    /// Gradient of its output, `[n, out]` or `[n, heads, out / heads]`.
    pub dy: &'a Tensor,
    /// Its weight, `[out, in]`.
    pub weight: View<'a>,
}

/// The gradient `[n, in]` of an input that all `branches` read, such as queries, keys and values
/// or gate and up: the sum of their dy W, in their order, with no pass of its own for the additions. On a
/// GPU neighbours whose dy lie side by side and whose weights follow each other in memory are one product.
pub fn backward_input(branches: &[Branch<'_>]) -> Result<Tensor> {
    let mut timed = OP.timed(Pass::Backward);
    let Some(first) = branches.first() else {
        return Err(OpError::Argument {
            op: OP.0,
            name: "number of branches",
            value: 0.0,
            expected: "at least 1",
        });
    };
    let [n, _] = OP.rows_and_width("dy", first.dy.dims(), "[n, out]")?;
    let [_, input] = OP.sizes("weight", first.weight.shape(), "[out, in]")?;
    timed.does(Work::moved(n * input, OP.dtype("dy", first.dy)?));
    for branch in branches {
        let output = branch.weight.len() / input;
        timed.does(
            Work::product([n, output, input]).moving((n + input) * output, branch.weight.dtype()),
        );
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(first.dy) {
        return cuda::backward_input(&gpu, branches, [n, input]);
    }
    with_float!(OP.dtype("dy", first.dy)?, T => {
        let mut dx = unwritten(n * input);
        for (index, branch) in branches.iter().enumerate() {
            let [output, _] = OP.sizes("weight", branch.weight.shape(), "[out, in]")?;
            let dy = OP.tensor::<T>("dy", &OP.flat_rows(branch.dy, n)?, &[n, output])?;
            let weight = OP.weight::<T>("weight", branch.weight, &[output, input])?;
            cpu::backward_input(&dy.lock()?, weight, &mut dx, [n, input, output], index > 0);
        }
        OP.output(dx, &[n, input])
    })
}
