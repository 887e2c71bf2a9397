//! The launch.

use cordee_memory::ViewMut;

use super::{OP, Stream};
use crate::{
    cuda::{Arg, Gpu, Grid, Source},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "random",
    text: concat!(include_str!("philox.cuh"), include_str!("kernels.cu")),
};

const THREADS: usize = 256;
/// Numbers of a block of the generator, which a thread has.
const NUMBERS: u64 = 4;

pub(super) fn normal_fill(
    gpu: &Gpu,
    values: &mut ViewMut<'_>,
    stream: Stream,
    first: u64,
    std: f64,
) -> Result<()> {
    let numbers = OP.numbers_of_view("values", &values.as_view())?;
    let (shape, count) = (values.shape().to_vec(), values.len() as u64);
    let values = OP.parameter_mut(gpu, "values", values, numbers, &shape)?;
    let blocks = (first + count).div_ceil(NUMBERS) - first / NUMBERS;
    let [seed, id] = stream.parts();
    let args: [Arg; 6] = [
        values.into(),
        count.into(),
        seed.into(),
        id.into(),
        first.into(),
        std.into(),
    ];
    let kernel = gpu.kernel(OP, &SOURCE, numbers, "normal_fill")?;
    let grid = Grid::new((blocks as usize).div_ceil(THREADS), THREADS);
    // SAFETY: the values are `count`, and there is a thread for each block of four.
    unsafe { kernel.launch(grid, &args) }
}
