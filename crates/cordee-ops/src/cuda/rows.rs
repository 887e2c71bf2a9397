//! How elements and rows are shared out to threads: what the prelude of the kernels expects.

use candle_core::Tensor;
use cordee_memory::DType;

use super::{Address, Arg, Gpu, Grid, Resident, Rows, Source};
use crate::{
    error::{OpError, Result},
    operand::Operator,
};

/// Threads of a block where nothing asks for more.
const THREADS: usize = 256;

/// Threads of a warp.
const WARP: usize = 32;

/// Most threads of a block.
const MOST_THREADS: usize = 1024;

/// Bytes that one access moves.
const ACCESS: usize = 16;

/// Elements of a row that a thread of its team holds: `HELD` of the prelude.
const HELD: usize = 8;

/// Threads that the sum over all rows is shared out to: enough for any GPU there is. It must not
/// depend on the GPU, or its sums would.
const SUMMING_THREADS: usize = 1 << 17;

/// Rows of a team, where there are enough: fewer would write more partial sums than they read rows.
const LEAST_ROWS: usize = 4;

impl Grid {
    /// A thread for each 16 bytes of `count` elements, as `each_element` of the prelude has it.
    pub(crate) fn of_elements(count: usize, numbers: DType) -> Self {
        let vector = ACCESS / numbers.size_in_bytes();
        Self::new(count.div_ceil(THREADS * vector), THREADS)
    }

    /// A block, or several in y, for each of `groups`, whose threads have one item each.
    pub(crate) fn of_groups(groups: usize, items: usize) -> Self {
        let threads = items.next_multiple_of(WARP).min(THREADS);
        Self {
            blocks: [groups, items.div_ceil(threads), 1],
            threads,
            shared: 0,
        }
    }
}

/// How many elements of a row one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowVector(usize);

impl RowVector {
    /// Those of 16 bytes, if all `widths` are multiples of it and all arrays begin where such a
    /// vector does, in `f32` too; else 1.
    pub(crate) fn new(numbers: DType, widths: &[usize], arrays: &[Address]) -> Self {
        let vector = ACCESS / numbers.size_in_bytes();
        let bytes = (vector * DType::F32.size_in_bytes()) as u64;
        let whole = widths.iter().all(|width| width.is_multiple_of(vector))
            && arrays.iter().all(|array| array.get().is_multiple_of(bytes));
        Self(if whole { vector } else { 1 })
    }

    pub(crate) fn count(self) -> usize {
        self.0
    }

    /// What kernels are compiled with.
    pub(crate) fn definitions(self) -> &'static [(&'static str, usize)] {
        if self.0 == 1 {
            &[("CORDEE_SCALAR", 1)]
        } else {
            &[]
        }
    }
}

/// How items, the same number for each row, are shared out: several short rows to a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    /// Rows of a block.
    pub(crate) rows: usize,
    pub(crate) grid: Grid,
}

impl Blocks {
    pub(crate) fn new(rows: usize, items: usize) -> Self {
        let of_block = (THREADS / items).max(1);
        let threads = (of_block * items).next_multiple_of(WARP).min(THREADS);
        Self {
            rows: of_block,
            grid: Grid::new(rows.div_ceil(of_block), threads),
        }
    }
}

/// The threads that work on a row together: `Team` of the prelude.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Team {
    size: usize,
    threads: usize,
}

/// A pass over rows that sums columns, in two stages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summing {
    pub(crate) grid: Grid,
    /// Rows that a team goes through.
    pub(crate) rows: usize,
}

impl Team {
    /// That of rows `dim` wide.
    pub(crate) fn of(dim: usize) -> Self {
        let needed = dim.div_ceil(HELD);
        if needed <= WARP {
            let size = needed.next_power_of_two();
            return Self {
                size,
                threads: THREADS,
            };
        }
        let size = needed.next_multiple_of(WARP).min(MOST_THREADS);
        Self {
            size,
            threads: size,
        }
    }

    pub(crate) fn size(self) -> usize {
        self.size
    }

    fn teams_of_block(self) -> usize {
        self.threads / self.size
    }

    /// A team for each of `n` rows.
    pub(crate) fn grid(self, n: usize) -> Grid {
        Grid::new(n.div_ceil(self.teams_of_block()), self.threads)
    }

    /// As many rows for each team as the number of rows asks for; each block leaves a partial sum.
    pub(crate) fn summing(self, n: usize) -> Summing {
        let teams = SUMMING_THREADS / self.size;
        let rows = n.div_ceil(teams).max(LEAST_ROWS);
        let mut grid = Grid::new(n.div_ceil(rows * self.teams_of_block()), self.threads);
        if self.teams_of_block() > 1 {
            grid.shared = self.threads * HELD * size_of::<f32>();
        }
        Summing { grid, rows }
    }
}

/// The operands of what is computed from a gate and what it gates, row by row: all are of one shape, and
/// may be parts of wider rows.
pub(crate) struct Gated {
    op: Operator,
    numbers: DType,
    /// Rows, and elements of each.
    sizes: [usize; 2],
    operands: Vec<Rows>,
}

impl Gated {
    /// Checks the operands, each with its name; the first decides shape and type.
    pub(crate) fn read(
        gpu: &Gpu,
        op: Operator,
        operands: &[(&'static str, &Tensor)],
    ) -> Result<Self> {
        let (name, first) = operands[0];
        let (numbers, shape) = (op.numbers(name, first)?, first.dims());
        let sizes = op.sizes(name, shape, "[n, width] on a GPU")?;
        let read = operands
            .iter()
            .map(|(name, tensor)| op.rows(gpu, name, tensor, numbers, shape));
        Ok(Self {
            op,
            numbers,
            sizes,
            operands: read.collect::<Result<_>>()?,
        })
    }

    /// Launches a kernel over `each_of_rows` of the prelude: operands, outputs of such a row stride each, the
    /// sizes, and the strides of both.
    ///
    /// # Safety
    ///
    /// The kernel takes as many, and the outputs have the rows.
    pub(crate) unsafe fn launch(
        &self,
        gpu: &Gpu,
        (source, function): (&'static Source, &'static str),
        outputs: &[(Address, usize)],
    ) -> Result<()> {
        let [rows, width] = self.sizes;
        let operands = self.operands.iter();
        let places: Vec<(Address, usize)> = operands
            .map(|operand| (operand.address(), operand.stride()))
            .chain(outputs.iter().copied())
            .collect();
        let (addresses, strides): (Vec<_>, Vec<_>) = places.into_iter().unzip();
        let widths = [&strides[..], &[width]].concat();
        let vector = RowVector::new(self.numbers, &widths, &addresses);
        let definitions = vector.definitions();
        let kernel = gpu.kernel_with(self.op, source, self.numbers, definitions, function)?;
        let mut args: Vec<Arg> = addresses.into_iter().map(Arg::from).collect();
        args.extend([rows, width].map(|size| Arg::from(size as u32)));
        args.extend(strides.iter().map(|&stride| Arg::from(stride as u32)));
        let threads = (rows * (width / vector.count())).next_multiple_of(THREADS);
        assert!(
            u32::try_from(threads).is_ok(),
            "threads are counted in 32 bits"
        );
        let grid = Grid::new(threads / THREADS, THREADS);
        // SAFETY: a thread for each vector of the rows; the rest is the caller's word.
        unsafe { kernel.launch(grid, &args) }
    }

    /// A new tensor for one output, and its row stride.
    pub(crate) fn output(&self, gpu: &Gpu) -> Result<(Resident, usize)> {
        let [_, width] = self.sizes;
        Ok((gpu.empty(self.op, self.numbers, &self.sizes)?, width))
    }

    /// Two outputs side by side in the rows of a new tensor, so that who reads one and the other reads one
    /// tensor. With each goes where it begins and its row stride.
    pub(crate) fn pair(&self, gpu: &Gpu) -> Result<[(Tensor, (Address, usize)); 2]> {
        let [rows, width] = self.sizes;
        let both = gpu.empty(self.op, self.numbers, &[rows, 2 * width])?;
        let half = |column| {
            let half = both.tensor().narrow(1, column, width);
            let half = half.map_err(|source| self.op.tensor_error(source))?;
            let first = both.address().plus(column, self.numbers);
            Ok::<_, OpError>((half, (first, 2 * width)))
        };
        Ok([half(0)?, half(width)?])
    }
}

pub(crate) static SOURCE: Source = Source {
    name: "cuda",
    text: include_str!("kernels.cu"),
};

impl Gpu {
    /// Adds the sum of each column of `partials` `[rows, dim]`, `f32`, to `sums` `[dim]`, `f32`.
    ///
    /// # Safety
    ///
    /// `sums` has `dim` elements, and is nobody else's meanwhile.
    pub(crate) unsafe fn add_columns(
        &self,
        op: Operator,
        partials: &Resident,
        sums: Address,
    ) -> Result<()> {
        let [rows, dim] = op.sizes("partials", partials.tensor().dims(), "[rows, dim]")?;
        let kernel = self.kernel(op, &SOURCE, DType::F32, "add_columns")?;
        let args = [
            partials.into(),
            sums.into(),
            (rows as u32).into(),
            (dim as u32).into(),
        ];
        let grid = Grid::new(dim.div_ceil(WARP), MOST_THREADS);
        // SAFETY: `partials` is [rows, dim]; of `sums` it is the caller's word.
        unsafe { kernel.launch(grid, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Blocks, RowVector, Team};
    use crate::cuda::Address;
    use cordee_memory::DType;

    #[test]
    fn teams_hold_their_rows() {
        for dim in 1..=8192 {
            let team = Team::of(dim);
            assert!(team.size * super::HELD >= dim, "{dim}");
            assert_eq!(team.threads % team.size, 0, "{dim}");
            let of_warps = team.size == team.threads && team.size.is_multiple_of(32);
            assert!(of_warps || (team.size <= 32 && team.size.is_power_of_two()));
        }
        assert_eq!(Team::of(1 << 20).size, 1024);
    }

    #[test]
    fn every_row_has_a_team() {
        for (n, dim) in [
            (1, 8),
            (5, 4096),
            (8192, 64),
            (1 << 20, 128),
            (100_000, 5120),
        ] {
            let (team, summing) = (Team::of(dim), Team::of(dim).summing(n));
            let teams = |grid: super::Grid| grid.blocks[0] * team.teams_of_block();
            assert!(teams(team.grid(n)) >= n);
            assert!(teams(summing.grid) * summing.rows >= n);
            let one_less = teams(summing.grid) - team.teams_of_block();
            assert!(one_less * summing.rows < n, "no block has nothing to do");
        }
    }

    #[test]
    fn rows_are_read_in_vectors_where_they_can_be() {
        let count = |numbers, width, address| {
            RowVector::new(numbers, &[width], &[Address(address)]).count()
        };
        assert_eq!(count(DType::F32, 100, 256), 4);
        assert_eq!(count(DType::Bf16, 100, 256), 1);
        assert_eq!(count(DType::Bf16, 104, 256), 8);
        assert_eq!(count(DType::Bf16, 104, 256 + 16), 1);
    }

    #[test]
    fn short_rows_share_a_block() {
        let blocks = Blocks::new(10, 24);
        assert_eq!((blocks.rows, blocks.grid.blocks[0]), (10, 1));
        let blocks = Blocks::new(10, 1000);
        assert_eq!((blocks.rows, blocks.grid.threads), (1, 256));
    }
}
