//! The launches: a team of threads per row, and column sums in two stages.

use candle_core::Tensor;
use cordee_memory::{DType, View, ViewMut};

use super::{Backward, Norm, Normed, OP};
use crate::{
    cuda::{Arg, Gpu, Resident, RowVector, Source, Team},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "rms_norm",
    text: include_str!("kernels.cu"),
};

/// What is added before, and where the sum is written.
struct Addition<'a> {
    residual: &'a Tensor,
    sum: &'a Resident,
}

pub(super) fn forward(
    gpu: &Gpu,
    x: &Tensor,
    weight: View<'_>,
    norm: Norm,
    sizes: [usize; 2],
) -> Result<Normed> {
    normalise(gpu, x, None, weight, norm, sizes)
}

pub(super) fn forward_residual(
    gpu: &Gpu,
    x: &Tensor,
    residual: &Tensor,
    weight: View<'_>,
    norm: Norm,
    sizes: [usize; 2],
) -> Result<(Tensor, Normed)> {
    let sum = gpu.empty(OP, OP.numbers("x", x)?, &sizes)?;
    let addition = Addition {
        residual,
        sum: &sum,
    };
    let normed = normalise(gpu, x, Some(addition), weight, norm, sizes)?;
    Ok((sum.into_tensor(), normed))
}

fn normalise(
    gpu: &Gpu,
    x: &Tensor,
    addition: Option<Addition<'_>>,
    weight: View<'_>,
    norm: Norm,
    [n, dim]: [usize; 2],
) -> Result<Normed> {
    let numbers = OP.numbers("x", x)?;
    let x = OP.resident(gpu, "x", x, numbers, &[n, dim])?;
    let residual = addition
        .as_ref()
        .map(|addition| OP.resident(gpu, "residual", addition.residual, numbers, &[n, dim]))
        .transpose()?;
    let weight = OP.parameter(gpu, "weight", weight, numbers, &[dim])?;
    let y = gpu.empty(OP, numbers, &[n, dim])?;
    let rstd = gpu.empty(OP, DType::F32, &[n])?;

    let added = residual.as_ref().map(Resident::address);
    let arrays = [x.address(), weight, added.unwrap_or(weight)];
    let vector = RowVector::new(numbers, &[dim], &arrays);
    let kernel = gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), "forward")?;
    let team = Team::of(dim);
    let args: [Arg; 11] = [
        (&x).into(),
        added.into(),
        weight.into(),
        addition.map(|addition| addition.sum.address()).into(),
        (&y).into(),
        (&rstd).into(),
        (n as u64).into(),
        (dim as u32).into(),
        (team.size() as u32).into(),
        norm.offset::<f32>().into(),
        (norm.eps as f32).into(),
    ];
    // SAFETY: [n, dim] but for the gains, [dim], and rstd, [n].
    unsafe { kernel.launch(team.grid(n), &args)? };
    Ok(Normed {
        y: y.into_tensor(),
        rstd: rstd.into_tensor(),
    })
}

pub(super) fn backward(
    gpu: &Gpu,
    inputs: &Backward<'_>,
    dweight: &mut ViewMut<'_>,
    [n, dim]: [usize; 2],
) -> Result<Tensor> {
    let numbers = OP.numbers("x", inputs.x)?;
    let rows = |name, tensor| OP.resident(gpu, name, tensor, numbers, &[n, dim]);
    let dy = rows("dy", inputs.dy)?;
    let x = rows("x", inputs.x)?;
    let residual = inputs.residual.map(|residual| rows("residual", residual));
    let residual = residual.transpose()?;
    let weight = OP.parameter(gpu, "weight", inputs.weight, numbers, &[dim])?;
    let rstd = OP.resident(gpu, "rstd", inputs.rstd, DType::F32, &[n])?;
    let dweight = OP.parameter_mut(gpu, "dweight", dweight, DType::F32, &[dim])?;

    let past = residual.as_ref().map(Resident::address);
    let arrays = [dy.address(), x.address(), weight, past.unwrap_or(weight)];
    let vector = RowVector::new(numbers, &[dim], &arrays);
    let kernel = gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), "backward")?;
    let team = Team::of(dim);
    let summing = team.summing(n);
    let dx = gpu.empty(OP, numbers, &[n, dim])?;
    let partials = gpu.empty(OP, DType::F32, &[summing.grid.blocks[0], dim])?;
    let args: [Arg; 12] = [
        (&dy).into(),
        (&x).into(),
        weight.into(),
        (&rstd).into(),
        past.into(),
        (&dx).into(),
        (&partials).into(),
        (n as u64).into(),
        (dim as u32).into(),
        (team.size() as u32).into(),
        (summing.rows as u32).into(),
        inputs.norm.offset::<f32>().into(),
    ];
    // SAFETY: [n, dim] but for the gains, [dim], rstd, [n], and a partial sum for each block; the
    // gradient is lent to this call alone.
    unsafe {
        kernel.launch(summing.grid, &args)?;
        gpu.add_columns(OP, &partials, dweight)?;
    }
    Ok(dx.into_tensor())
}
