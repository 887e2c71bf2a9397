//! The launches: a team of threads per row, and column sums in two stages.

use candle_core::Tensor;
use cordee_memory::{DType, View, ViewMut};

use super::{Backward, Normed, OP};
use crate::{
    cuda::{Arg, Gpu, Resident, RowVector, Source, Team},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "layer_norm",
    text: include_str!("kernels.cu"),
};

/// What is added before, and where the sum is written.
struct Addition<'a> {
    residual: &'a Tensor,
    sum: &'a Resident,
}

/// What follows the normalisation, and what keeps it from dividing by 0.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    pub(super) weight: View<'a>,
    pub(super) bias: View<'a>,
    pub(super) eps: f64,
}

pub(super) fn forward(
    gpu: &Gpu,
    x: &Tensor,
    affine: Affine<'_>,
    sizes: [usize; 2],
) -> Result<Normed> {
    normalise(gpu, x, None, affine, sizes)
}

pub(super) fn forward_residual(
    gpu: &Gpu,
    x: &Tensor,
    residual: &Tensor,
    affine: Affine<'_>,
    sizes: [usize; 2],
) -> Result<(Tensor, Normed)> {
    let sum = gpu.empty(OP, OP.numbers("x", x)?, &sizes)?;
    let addition = Addition {
        residual,
        sum: &sum,
    };
    let normed = normalise(gpu, x, Some(addition), affine, sizes)?;
    Ok((sum.into_tensor(), normed))
}

fn normalise(
    gpu: &Gpu,
    x: &Tensor,
    addition: Option<Addition<'_>>,
    affine: Affine<'_>,
    [n, dim]: [usize; 2],
) -> Result<Normed> {
    let numbers = OP.numbers("x", x)?;
    let x = OP.resident(gpu, "x", x, numbers, &[n, dim])?;
    let residual = addition
        .as_ref()
        .map(|addition| OP.resident(gpu, "residual", addition.residual, numbers, &[n, dim]))
        .transpose()?;
    let weight = OP.parameter(gpu, "weight", affine.weight, numbers, &[dim])?;
    let bias = OP.parameter(gpu, "bias", affine.bias, numbers, &[dim])?;
    let y = gpu.empty(OP, numbers, &[n, dim])?;
    let [mean, rstd] = [
        gpu.empty(OP, DType::F32, &[n])?,
        gpu.empty(OP, DType::F32, &[n])?,
    ];

    let added = residual.as_ref().map(Resident::address);
    let arrays = [x.address(), weight, bias, added.unwrap_or(weight)];
    let vector = RowVector::new(numbers, &[dim], &arrays);
    let kernel = gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), "forward")?;
    let team = Team::of(dim);
    let args: [Arg; 12] = [
        (&x).into(),
        added.into(),
        weight.into(),
        bias.into(),
        addition.map(|addition| addition.sum.address()).into(),
        (&y).into(),
        (&mean).into(),
        (&rstd).into(),
        (n as u64).into(),
        (dim as u32).into(),
        (team.size() as u32).into(),
        (affine.eps as f32).into(),
    ];
    // SAFETY: [n, dim] but for weight and bias, [dim], and mean and rstd, [n].
    unsafe { kernel.launch(team.grid(n), &args)? };
    Ok(Normed {
        y: y.into_tensor(),
        mean: mean.into_tensor(),
        rstd: rstd.into_tensor(),
    })
}

pub(super) fn backward(
    gpu: &Gpu,
    inputs: &Backward<'_>,
    dweight: &mut ViewMut<'_>,
    dbias: &mut ViewMut<'_>,
    [n, dim]: [usize; 2],
) -> Result<Tensor> {
    let numbers = OP.numbers("x", inputs.x)?;
    let rows = |name, tensor| OP.resident(gpu, name, tensor, numbers, &[n, dim]);
    let dy = rows("dy", inputs.dy)?;
    let x = rows("x", inputs.x)?;
    let residual = inputs.residual.map(|residual| rows("residual", residual));
    let residual = residual.transpose()?;
    let weight = OP.parameter(gpu, "weight", inputs.weight, numbers, &[dim])?;
    let mean = OP.resident(gpu, "mean", inputs.mean, DType::F32, &[n])?;
    let rstd = OP.resident(gpu, "rstd", inputs.rstd, DType::F32, &[n])?;
    let dweight = OP.parameter_mut(gpu, "dweight", dweight, DType::F32, &[dim])?;
    let dbias = OP.parameter_mut(gpu, "dbias", dbias, DType::F32, &[dim])?;

    let past = residual.as_ref().map(Resident::address);
    let arrays = [dy.address(), x.address(), weight, past.unwrap_or(weight)];
    let vector = RowVector::new(numbers, &[dim], &arrays);
    let kernel = gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), "backward")?;
    let team = Team::of(dim);
    let summing = team.summing(n);
    let dx = gpu.empty(OP, numbers, &[n, dim])?;
    let blocks = summing.grid.blocks[0];
    let weight_partials = gpu.empty(OP, DType::F32, &[blocks, dim])?;
    let bias_partials = gpu.empty(OP, DType::F32, &[blocks, dim])?;
    let args: [Arg; 13] = [
        (&dy).into(),
        (&x).into(),
        weight.into(),
        (&mean).into(),
        (&rstd).into(),
        past.into(),
        (&dx).into(),
        (&weight_partials).into(),
        (&bias_partials).into(),
        (n as u64).into(),
        (dim as u32).into(),
        (team.size() as u32).into(),
        (summing.rows as u32).into(),
    ];
    // SAFETY: [n, dim] but for the weight, [dim], mean and rstd, [n], and two partial sums for each
    // block; the gradients are lent to this call alone.
    unsafe {
        kernel.launch(summing.grid, &args)?;
        gpu.add_columns(OP, &weight_partials, dweight)?;
        gpu.add_columns(OP, &bias_partials, dbias)?;
    }
    Ok(dx.into_tensor())
}
