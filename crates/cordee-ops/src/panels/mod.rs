//! Products of f32 matrices by packed panels (Goto and van de Geijn, 2008), for processors with
//! AVX-512.
//!
//! B is copied into panels as wide as a tile of C, a group of them at a time, which all threads
//! then read; each thread copies the rows of A that it needs. Copying is where strides end, so no
//! matrix is ever transposed for a product.
//!
//! The summed dimension is cut into blocks that depend on its length alone, and an element of C is
//! summed in order within a block and block after block. How rows and columns are dealt to threads
//! therefore changes no bit.

mod avx512;
#[cfg(test)]
mod tests;

use std::{cell::RefCell, ops::Range, sync::LazyLock};

use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut, Write};
use avx512::{COLUMNS, LANES, Left, Panel, ROWS, Right, Tile};

/// Most of the summed dimension that a panel holds: a panel of B fits in the first-level cache.
const DEPTH: usize = 512;

/// Most elements of B that are packed at a time: 4 MiB.
const GROUP: usize = 1 << 20;

/// Panels of A that a task packs: with [`DEPTH`] they fit in the second-level cache.
const TASK_PANELS: usize = 16;

/// Rows of B that a task packs, where rows are contiguous.
const PACKED_ROWS: usize = 64;

/// Whether this processor has what the kernels need.
pub(crate) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| is_x86_feature_detected!("avx512f"));
    *AVAILABLE
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// This thread.
    One,
    /// All threads of the pool.
    All,
}

/// `scale` * `left` * `right` into `destination`; needs [`available`].
pub(crate) fn product(
    destination: &mut MatrixMut<'_, f32>,
    write: Write,
    scale: f32,
    left: Matrix<'_, f32>,
    right: Matrix<'_, f32>,
    threads: Threads,
) {
    assert!(available(), "the processor has no AVX-512");
    let [rows, depth, columns] = [left.size()[0], left.size()[1], right.size()[1]];
    assert_eq!(destination.size(), [rows, columns], "size of a product");
    assert_eq!(right.size()[0], depth, "summed dimension of a product");
    if rows == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        if write == Write::Replace {
            (0..rows).for_each(|row| destination.row(row).fill(0.0));
        }
        return;
    }
    let blocks = Blocks::new(depth);
    // As many columns as a group holds of one block, as many blocks as it holds of those columns.
    let width = columns.min(GROUP / blocks.depth / COLUMNS * COLUMNS);
    let blocks_of_group = (GROUP / (blocks.depth * width.next_multiple_of(COLUMNS))).max(1);
    for first_column in (0..columns).step_by(width) {
        let columns = first_column..columns.min(first_column + width);
        let right = right.columns(columns.clone());
        for first_block in (0..blocks.count).step_by(blocks_of_group) {
            let group = Group {
                blocks,
                range: first_block..blocks.count.min(first_block + blocks_of_group),
                columns: columns.len(),
                write,
                scale,
            };
            with_buffer(&PACKED_RIGHT, group.packed_len(), |packed| {
                group.pack(packed, right, threads);
                let destination = destination.window(0..rows, columns.clone());
                group.multiply(destination, left, packed, threads);
            });
        }
    }
}

/// How the summed dimension is cut.
#[derive(Clone, Copy)]
struct Blocks {
    total: usize,
    depth: usize,
    count: usize,
}

impl Blocks {
    fn new(total: usize) -> Self {
        let depth = total.div_ceil(total.div_ceil(DEPTH));
        Self {
            total,
            depth,
            count: total.div_ceil(depth),
        }
    }

    fn range(self, block: usize) -> Range<usize> {
        block * self.depth..self.total.min((block + 1) * self.depth)
    }
}

/// Some blocks of the summed dimension, for some columns of C.
struct Group {
    blocks: Blocks,
    range: Range<usize>,
    columns: usize,
    write: Write,
    scale: f32,
}

impl Group {
    fn panels(&self) -> usize {
        self.columns.div_ceil(COLUMNS)
    }

    /// Elements of a packed panel; that of the last block may leave some unused.
    fn panel_len(&self) -> usize {
        self.blocks.depth * COLUMNS
    }

    fn packed_len(&self) -> usize {
        self.range.len() * self.panels() * self.panel_len()
    }

    /// Copies B into panels: block by block, in each panel by panel.
    fn pack(&self, packed: &mut [f32], right: Matrix<'_, f32>, threads: Threads) {
        let blocks = packed.chunks_exact_mut(self.panels() * self.panel_len());
        let tasks = blocks.zip(self.range.clone()).flat_map(|(packed, block)| {
            let right = right.rows(self.blocks.range(block));
            let packed = MatrixMut::new(packed, self.panels(), self.panel_len());
            // Along what is contiguous: panels of columns, or bands of rows for all panels.
            let parts: Vec<_> = if right.contiguous_rows().is_none() {
                let panels = packed.split_rows(1).into_iter().zip((0..).step_by(COLUMNS));
                let part = |(packed, first): (_, usize)| {
                    let columns = first..right.size()[1].min(first + COLUMNS);
                    (packed, right.columns(columns))
                };
                panels.map(part).collect()
            } else {
                let bands = packed.split_columns(PACKED_ROWS * COLUMNS).into_iter();
                let part = |(packed, first): (_, usize)| {
                    let end = right.size()[0].min(first + PACKED_ROWS);
                    (packed, right.rows(first.min(end)..end))
                };
                bands.zip((0..).step_by(PACKED_ROWS)).map(part).collect()
            };
            parts
        });
        let pack = |(mut packed, right): (MatrixMut<'_, f32>, Matrix<'_, f32>)| {
            pack_right(right, &mut packed);
        };
        match threads {
            Threads::One => tasks.for_each(pack),
            Threads::All => tasks.collect::<Vec<_>>().into_par_iter().for_each(pack),
        }
    }

    /// Multiplies all rows of A by the packed panels.
    fn multiply(
        &self,
        destination: MatrixMut<'_, f32>,
        left: Matrix<'_, f32>,
        packed: &[f32],
        threads: Threads,
    ) {
        let height = TASK_PANELS * ROWS;
        let work = |(mut tile, row, panel): (MatrixMut<'_, f32>, usize, usize)| {
            let left = left.rows(row..row + tile.size()[0]);
            self.multiply_task(&mut tile, left, packed, panel);
        };
        match threads {
            Threads::One => {
                let bands = destination.split_rows(height).into_iter().enumerate();
                bands.for_each(|(band, tile)| work((tile, band * height, 0)));
            }
            Threads::All => {
                // A few tasks for each thread, so that one that is held up holds nobody else up.
                // Columns are divided only where rows are too few: what shares rows packs them anew.
                let tasks = 4 * rayon::current_num_threads();
                let panels = destination.size()[0].div_ceil(ROWS);
                let height = (panels / tasks).clamp(1, TASK_PANELS) * ROWS;
                let parts = tasks.div_ceil(panels).min(self.panels());
                let width = self.panels().div_ceil(parts);
                let tasks: Vec<_> = destination
                    .split_rows(height)
                    .into_iter()
                    .enumerate()
                    .flat_map(|(band, rows)| {
                        let parts = rows.split_columns(width * COLUMNS).into_iter().enumerate();
                        parts.map(move |(part, tile)| (tile, band * height, part * width))
                    })
                    .collect();
                tasks.into_par_iter().with_max_len(1).for_each(work);
            }
        }
    }

    /// Multiplies some rows of A by the panels from `first_panel` on that `destination` is wide.
    fn multiply_task(
        &self,
        destination: &mut MatrixMut<'_, f32>,
        left: Matrix<'_, f32>,
        packed: &[f32],
        first_panel: usize,
    ) {
        let [rows, columns] = destination.size();
        let panels = rows.div_ceil(ROWS);
        // Panels as high as one another, rather than full ones and a rest.
        let rows_of = |panel: usize| panel * rows / panels..(panel + 1) * rows / panels;
        // What is read for two panels of B at most is not worth packing.
        let packs = columns > 2 * COLUMNS;
        let packed_len = if packs { rows * self.blocks.depth } else { 0 };
        with_buffer(&PACKED_LEFT, packed_len, |packed_left| {
            for (index, block) in self.range.clone().enumerate() {
                let range = self.blocks.range(block);
                let depth = range.len();
                let left = left.columns(range);
                if packs {
                    pack_left(
                        left,
                        (0..panels).map(rows_of),
                        &mut packed_left[..rows * depth],
                    );
                }
                let add = self.write == Write::Add || block > 0;
                let right = &packed[(index * self.panels() + first_panel) * self.panel_len()..];
                let right = right.chunks_exact(self.panel_len());
                // Each panel of A asks for its share of the panel of B that comes next.
                let share = COLUMNS.div_ceil(panels);
                for (right, column) in right.zip((0..columns).step_by(COLUMNS)) {
                    let next = right.as_ptr().wrapping_add(self.panel_len());
                    for (panel, rows) in (0..panels).map(rows_of).enumerate() {
                        let right = Right {
                            start: right.as_ptr(),
                            depth,
                            ahead: next.wrapping_add(panel * share * depth),
                            ahead_stride: share,
                        };
                        let width = COLUMNS.min(columns - column);
                        let mut window = destination.window(rows.clone(), column..column + width);
                        let tile = Tile {
                            start: window.as_mut_ptr(),
                            row_stride: window.row_stride(),
                            columns: width,
                            add,
                            scale: self.scale,
                        };
                        let left = if packs {
                            Left {
                                start: packed_left[rows.start * depth..rows.end * depth].as_ptr(),
                                rows: rows.len(),
                                stride: rows.len(),
                                rows_contiguous: false,
                            }
                        } else {
                            in_place(left.rows(rows))
                        };
                        // SAFETY: the rows and the panel are `depth` deep, the window is the
                        // tile's, and `product` has looked at the processor.
                        unsafe { avx512::multiply(left, right, tile) };
                    }
                }
            }
        });
    }
}

/// Rows of A where they lie.
fn in_place(left: Matrix<'_, f32>) -> Left {
    let rows = left.size()[0];
    let rows_contiguous = left.contiguous_rows();
    let (start, stride) = rows_contiguous.unwrap_or_else(|| left.contiguous_columns());
    Left {
        start,
        rows,
        stride,
        rows_contiguous: rows_contiguous.is_some(),
    }
}

/// Copies A into panels of the given rows, at most [`ROWS`] high, one after the other: element
/// (r, p) of a panel goes to `p * rows + r`.
fn pack_left(
    left: Matrix<'_, f32>,
    heights: impl Iterator<Item = Range<usize>>,
    packed: &mut [f32],
) {
    let [rows, depth] = left.size();
    assert_eq!(packed.len(), rows * depth, "panels of A");
    if let Some((start, stride)) = left.contiguous_rows() {
        for rows in heights {
            let source = start.wrapping_add(rows.start * stride);
            let panel = packed[rows.start * depth..rows.end * depth].as_mut_ptr();
            let size = [rows.len(), rows.len()];
            // SAFETY: some of the matrix's rows, into a panel of as many columns.
            unsafe { avx512::transpose_rows(source, stride, rows.len(), depth, panel, size) };
        }
    } else {
        let (start, stride) = left.contiguous_columns();
        let panels: Vec<_> = heights
            .map(|rows| Panel::new(rows.start, rows.len(), rows.start * depth, rows.len()))
            .collect();
        // SAFETY: the panels divide the matrix and the memory.
        unsafe { avx512::copy_rows(start, stride, depth, &panels, packed.as_mut_ptr()) };
    }
}

/// Copies some of B's rows into all its panels, or some of its columns into theirs; a row of
/// `packed` is a panel. Where the matrix ends, panels are filled up with 0.
fn pack_right(right: Matrix<'_, f32>, packed: &mut MatrixMut<'_, f32>) {
    let [depth, columns] = right.size();
    let [panels, len] = packed.size();
    assert!(
        depth * COLUMNS <= len && columns <= panels * COLUMNS,
        "panels of B"
    );
    if let Some((start, stride)) = right.contiguous_rows() {
        let panels: Vec<_> = (0..panels)
            .map(|panel| {
                let first = panel * COLUMNS;
                let count = COLUMNS.min(columns - first);
                Panel::new(first, count, panel * packed.row_stride(), COLUMNS)
            })
            .collect();
        let destination = packed.as_mut_ptr();
        // SAFETY: `depth` rows of the matrix, into as many rows of panels that are this matrix's.
        unsafe { avx512::copy_rows(start, stride, depth, &panels, destination) };
    } else {
        assert_eq!(panels, 1, "columns are packed a panel at a time");
        let (start, stride) = right.contiguous_columns();
        for first in [0, LANES] {
            let count = columns.saturating_sub(first).min(LANES);
            let source = start.wrapping_add(first * stride);
            let panel = packed.row(0)[first..].as_mut_ptr();
            // SAFETY: `count` columns of the matrix, into half of a panel.
            unsafe {
                avx512::transpose_rows(source, stride, count, depth, panel, [COLUMNS, LANES]);
            };
        }
    }
}

thread_local! {
    static PACKED_LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PACKED_RIGHT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` elements of a thread's buffer, holding what they will.
fn with_buffer(
    buffer: &'static std::thread::LocalKey<RefCell<Vec<f32>>>,
    len: usize,
    call: impl FnOnce(&mut [f32]),
) {
    // Taken out meanwhile: a thread that waits for others may take up another product.
    let mut elements = buffer.take();
    if elements.len() < len {
        elements.resize(len, 0.0);
    }
    call(&mut elements[..len]);
    buffer.set(elements);
}
