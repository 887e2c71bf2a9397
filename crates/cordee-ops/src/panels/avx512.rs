//! The two loops of a product that must be written for the processor: multiplying a panel by a
//! panel, and copying rows into a panel.
//!
//! A tile of C is [`ROWS`] x [`COLUMNS`]: 14 rows of two registers each leave room, in 32
//! registers, for two of B and one broadcast element of A. Each element of C is one chain of fused
//! multiply-adds in the order of the summed index, whatever the tile it lies in.

use std::arch::x86_64::{
    __m512, __mmask16, _MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_add_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_unpackhi_ps,
    _mm512_unpacklo_ps,
};

/// Most rows of a tile of C; panels of A are at most this high.
pub(super) const ROWS: usize = 14;

/// Columns of a tile of C; panels of B are this wide, with zeros where the matrix ends.
pub(super) const COLUMNS: usize = 2 * LANES;

/// Numbers in a register.
pub(super) const LANES: usize = 16;

/// Where a tile goes.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Its first element.
    pub(super) start: *mut f32,
    /// Elements from one row to the next.
    pub(super) row_stride: usize,
    /// Columns there really are, at most [`COLUMNS`].
    pub(super) columns: usize,
    /// Whether to add to what is there.
    pub(super) add: bool,
    /// What the product is multiplied with.
    pub(super) scale: f32,
}

/// The lowest `count` lanes, all of them from 16 on.
fn mask(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// Up to [`ROWS`] rows of A, packed or where they lie.
#[derive(Clone, Copy)]
pub(super) struct Left {
    /// The first element.
    pub(super) start: *const f32,
    pub(super) rows: usize,
    /// Elements from one column to the next; from one row to the next, if a row's are contiguous.
    pub(super) stride: usize,
    /// Whether a row's elements are contiguous, rather than a column's.
    pub(super) rows_contiguous: bool,
}

/// A panel of B.
#[derive(Clone, Copy)]
pub(super) struct Right {
    /// The first element.
    pub(super) start: *const f32,
    /// Rows it has, of [`COLUMNS`] elements each.
    pub(super) depth: usize,
    /// What to ask for on the way, a little for each row: a part of the panel that comes next.
    pub(super) ahead: *const f32,
    /// Elements further for each row.
    pub(super) ahead_stride: usize,
}

/// Multiplies as many columns of `left` by a panel of B as that is deep.
///
/// # Safety
/// `left` and `right` may be read, the tile's `rows` x `columns` elements may be written, and the
/// processor has AVX-512 F.
pub(super) unsafe fn multiply(left: Left, right: Right, tile: Tile) {
    macro_rules! by_rows {
        ($($count:literal)*) => {
            match (left.rows, left.rows_contiguous, tile.columns > LANES) {
                $(
                    // SAFETY: as of this function.
                    ($count, false, false) => unsafe {
                        multiply_rows::<$count, 1, false>(left, right, tile);
                    },
                    // SAFETY: as above.
                    ($count, false, true) => unsafe {
                        multiply_rows::<$count, 2, false>(left, right, tile);
                    },
                    // SAFETY: as above.
                    ($count, true, false) => unsafe {
                        multiply_rows::<$count, 1, true>(left, right, tile);
                    },
                    // SAFETY: as above.
                    ($count, true, true) => unsafe {
                        multiply_rows::<$count, 2, true>(left, right, tile);
                    },
                )*
                _ => unreachable!("panels of A have 1 to {ROWS} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// For a tile of `R` rows and at most `V` registers of columns.
///
/// # Safety
/// As of [`multiply`].
#[target_feature(enable = "avx512f")]
unsafe fn multiply_rows<const R: usize, const V: usize, const ROWS_CONTIGUOUS: bool>(
    left: Left,
    right: Right,
    tile: Tile,
) {
    // By the time the sums are there, so is what they are added to or written over.
    for row in 0..R {
        let start = tile.start.wrapping_add(row * tile.row_stride);
        _mm_prefetch::<_MM_HINT_ET0>(start.cast());
        _mm_prefetch::<_MM_HINT_ET0>(start.wrapping_add(V * LANES - 1).cast());
    }
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b, mut ahead) = (left.start, right.start, right.ahead);
    for _ in 0..right.depth {
        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
        ahead = ahead.wrapping_add(right.ahead_stride);
        // SAFETY: row after row of `b` and column after column of `left`.
        unsafe {
            let mut columns = [_mm512_setzero_ps(); V];
            for (lane, columns) in columns.iter_mut().enumerate() {
                *columns = _mm512_loadu_ps(b.add(lane * LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let offset = if ROWS_CONTIGUOUS {
                    row * left.stride
                } else {
                    row
                };
                let a = _mm512_set1_ps(*a.add(offset));
                for (sum, &columns) in sums.iter_mut().zip(&columns) {
                    *sum = _mm512_fmadd_ps(a, columns, *sum);
                }
            }
            a = a.wrapping_add(if ROWS_CONTIGUOUS { 1 } else { left.stride });
            b = b.add(COLUMNS);
        }
    }
    let scale = _mm512_set1_ps(tile.scale);
    for (row, sums) in sums.iter().enumerate() {
        for (lane, &sums) in sums.iter().enumerate() {
            let start = tile
                .start
                .wrapping_add(row * tile.row_stride + lane * LANES);
            let mask = mask(tile.columns - lane * LANES);
            let mut sums = _mm512_mul_ps(sums, scale);
            // SAFETY: the mask leaves out what lies beyond the tile's columns.
            unsafe {
                if tile.add {
                    sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, start));
                }
                _mm512_mask_storeu_ps(start, mask, sums);
            }
        }
    }
}

/// Elements ahead of those it reads at which packing asks for a row's next ones. A panel is made of
/// many short pieces, and each would begin with waiting for memory.
const AHEAD: usize = 64;

/// Copies up to 16 rows of `depth` elements, `row_stride` apart, into a panel: element `p` of row
/// `r` goes to `p * width + r`. Columns of the panel from `rows` to `lanes` become 0.
///
/// # Safety
/// The rows may be read, the panel's `lanes` columns may be written for `depth` rows, and the
/// processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_rows(
    source: *const f32,
    row_stride: usize,
    rows: usize,
    depth: usize,
    panel: *mut f32,
    [width, lanes]: [usize; 2],
) {
    let store = mask(lanes);
    for row in 0..rows {
        for start in (0..depth.min(AHEAD)).step_by(LANES) {
            _mm_prefetch::<_MM_HINT_T0>(source.wrapping_add(row * row_stride + start).cast());
        }
    }
    for start in (0..depth).step_by(LANES) {
        let count = LANES.min(depth - start);
        let load = mask(count);
        let mut block = [_mm512_setzero_ps(); LANES];
        for (row, block) in block.iter_mut().enumerate() {
            if row < rows {
                let source = source.wrapping_add(row * row_stride + start);
                // SAFETY: elements `start` to `start + count` of a row that may be read.
                *block = unsafe { _mm512_maskz_loadu_ps(load, source) };
                _mm_prefetch::<_MM_HINT_T0>(source.wrapping_add(AHEAD).cast());
            }
        }
        let block = transposed(&block);
        for (p, &column) in block.iter().enumerate() {
            if p < count {
                let panel = panel.wrapping_add((start + p) * width);
                // SAFETY: row `start + p` of the panel, of which the mask takes `lanes` columns.
                unsafe { _mm512_mask_storeu_ps(panel, store, column) };
            }
        }
    }
}

/// Some neighbouring columns of a matrix, and where they go.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    first: usize,
    start: usize,
    width: usize,
    /// For each register of a row: which lanes are read, and which written.
    masks: [(__mmask16, __mmask16); COLUMNS / LANES],
}

impl Panel {
    /// `columns` of the matrix from `first` on go to a panel `width` wide, at most [`COLUMNS`],
    /// whose first element lies `start` elements from where panels go. Columns that the matrix does
    /// not have become 0.
    pub(super) fn new(first: usize, columns: usize, start: usize, width: usize) -> Self {
        let masks = [0, LANES].map(|lane| {
            let of = |count: usize| mask(count.saturating_sub(lane));
            (of(columns), of(width))
        });
        Self {
            first,
            start,
            width,
            masks,
        }
    }
}

/// Copies `depth` rows, `row_stride` apart, into panels: a row at a time, since it is contiguous.
///
/// # Safety
/// The panels' columns of the rows may be read, `depth` times the panels' widths may be written at
/// their starts, and the processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn copy_rows(
    source: *const f32,
    row_stride: usize,
    depth: usize,
    panels: &[Panel],
    destination: *mut f32,
) {
    /// Rows that are asked for ahead.
    const ROWS_AHEAD: usize = 4;
    for p in 0..depth {
        let row = source.wrapping_add(p * row_stride);
        for panel in panels {
            let read = row.wrapping_add(panel.first);
            let written = destination.wrapping_add(panel.start + p * panel.width);
            _mm_prefetch::<_MM_HINT_T0>(read.wrapping_add(ROWS_AHEAD * row_stride).cast());
            for (&(load, store), lane) in panel.masks.iter().zip([0, LANES]) {
                if store != 0 {
                    // SAFETY: the masks leave out what lies beyond the columns and the panel.
                    unsafe {
                        let values = _mm512_maskz_loadu_ps(load, read.wrapping_add(lane));
                        _mm512_mask_storeu_ps(written.wrapping_add(lane), store, values);
                    }
                }
            }
        }
    }
}

/// Rows and columns of a 16 x 16 block exchanged.
#[target_feature(enable = "avx512f")]
fn transposed(rows: &[__m512; LANES]) -> [__m512; LANES] {
    let zero = _mm512_setzero_ps();
    // Within each quarter of a register: 4 x 4 blocks of rows 4i .. 4i + 4.
    let mut quads = [zero; LANES];
    for i in (0..LANES).step_by(4) {
        let low = (
            _mm512_unpacklo_ps(rows[i], rows[i + 1]),
            _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]),
        );
        let high = (
            _mm512_unpackhi_ps(rows[i], rows[i + 1]),
            _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]),
        );
        quads[i] = _mm512_shuffle_ps::<0b01_00_01_00>(low.0, low.1);
        quads[i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(low.0, low.1);
        quads[i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(high.0, high.1);
        quads[i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(high.0, high.1);
    }
    // Then the quarters: column 4q + j is quarter q of `quads[j]`, `[4 + j]`, `[8 + j]`, `[12 + j]`.
    let mut columns = [zero; LANES];
    for j in 0..4 {
        let first = _mm512_shuffle_f32x4::<0b10_00_10_00>(quads[j], quads[4 + j]);
        let second = _mm512_shuffle_f32x4::<0b10_00_10_00>(quads[8 + j], quads[12 + j]);
        columns[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(first, second);
        columns[8 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(first, second);
        let first = _mm512_shuffle_f32x4::<0b11_01_11_01>(quads[j], quads[4 + j]);
        let second = _mm512_shuffle_f32x4::<0b11_01_11_01>(quads[8 + j], quads[12 + j]);
        columns[4 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(first, second);
        columns[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(first, second);
    }
    columns
}
