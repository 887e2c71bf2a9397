//! Strided matrices over slices, and their products.
//!
//! Home of most of the crate's `unsafe`: it hands out disjoint windows of one matrix to several
//! threads, lends memory that is yet to be written, and calls the `gemm` crate, which takes pointers.

#[cfg(target_arch = "x86_64")]
use std::any::TypeId;
use std::{marker::PhantomData, ops::Range, slice};

use gemm::Parallelism;
use rayon::prelude::*;

use crate::float::Float;
#[cfg(target_arch = "x86_64")]
use crate::panels::{self, Threads};

/// Height of the tiles that [`parallel_product`] hands to threads. The same for any number of
/// threads, because `gemm` orders its sums by the shape of a call.
const TILE_ROWS: usize = 128;

/// Width of those tiles.
const TILE_COLUMNS: usize = 512;

/// A matrix to read, with any strides.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Float> Matrix<'a, T> {
    /// `rows` x `columns` elements, one row after the other.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(
            data.len(),
            rows * columns,
            "a row-major matrix fills its slice"
        );
        Self::strided(data, rows, columns, columns)
    }

    /// Rows of `columns` elements that begin every `row_stride` elements from the start of `data`.
    pub(crate) fn strided(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        let last = rows.saturating_sub(1) * row_stride + columns;
        assert!(
            rows == 0 || last <= data.len(),
            "the last row of a matrix lies outside its slice"
        );
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// Rows and columns.
    pub(crate) fn size(self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The first element and the distance of rows, if the elements of a row are contiguous.
    pub(crate) fn contiguous_rows(self) -> Option<(*const T, usize)> {
        (self.column_stride == 1).then_some((self.data.as_ptr(), self.row_stride))
    }

    /// The first element and the distance of columns, of a matrix whose columns are contiguous.
    pub(crate) fn contiguous_columns(self) -> (*const T, usize) {
        assert_eq!(
            self.row_stride, 1,
            "a matrix has contiguous rows or columns"
        );
        (self.data.as_ptr(), self.column_stride)
    }

    /// One row, of a matrix whose rows are contiguous.
    pub(crate) fn row(self, row: usize) -> &'a [T] {
        assert!(
            row < self.rows && self.column_stride == 1,
            "row outside the matrix"
        );
        &self.data[row * self.row_stride..][..self.columns]
    }

    /// Rows and columns exchanged; nothing moves.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows.
    pub(crate) fn rows(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows outside the matrix"
        );
        // An empty range may begin past the last element.
        let start = (range.start * self.row_stride).min(self.data.len());
        Self {
            data: &self.data[start..],
            rows: range.len(),
            ..self
        }
    }

    /// Some of the columns.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        self.transposed().rows(range).transposed()
    }
}

/// A matrix to write; elements of a row are contiguous, rows may have others' elements between
/// them.
pub(crate) struct MatrixMut<'a, T> {
    start: *mut T,
    rows: usize,
    columns: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: a `MatrixMut` is the only way to its elements for as long as it lives, like the `&mut [T]`
// it was made from: the constructors take one, and splitting gives every element to one part only.
unsafe impl<T: Send> Send for MatrixMut<'_, T> {}

impl<'a, T: Float> MatrixMut<'a, T> {
    /// `rows` x `columns` elements, one row after the other.
    pub(crate) fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        assert_eq!(
            data.len(),
            rows * columns,
            "a row-major matrix fills its slice"
        );
        Self {
            start: data.as_mut_ptr(),
            rows,
            columns,
            row_stride: columns,
            lifetime: PhantomData,
        }
    }

    /// Rows and columns.
    pub(crate) fn size(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The first element.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.start
    }

    /// Elements from one row to the next.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// One row.
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row outside the matrix");
        // SAFETY: the row lies in the slice the matrix was made from, its elements belong to this
        // matrix alone, and the result borrows the matrix mutably.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.columns)
        }
    }

    /// A window, for as long as the matrix is borrowed.
    pub(crate) fn window(&mut self, rows: Range<usize>, columns: Range<usize>) -> MatrixMut<'_, T> {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows outside the matrix"
        );
        assert!(
            columns.start <= columns.end && columns.end <= self.columns,
            "columns outside the matrix"
        );
        MatrixMut {
            // `wrapping_add`: an empty window may begin past the last element.
            start: self
                .start
                .wrapping_add(rows.start * self.row_stride + columns.start),
            rows: rows.len(),
            columns: columns.len(),
            row_stride: self.row_stride,
            lifetime: PhantomData,
        }
    }

    /// Bands of `height` rows from top to bottom; the last may be lower.
    pub(crate) fn split_rows(self, height: usize) -> Vec<Self> {
        (0..self.rows)
            .step_by(height)
            .map(|row| Self {
                start: self.start.wrapping_add(row * self.row_stride),
                rows: height.min(self.rows - row),
                ..self
            })
            .collect()
    }

    /// Bands of `width` columns from left to right; the last may be narrower.
    pub(crate) fn split_columns(self, width: usize) -> Vec<Self> {
        (0..self.columns)
            .step_by(width)
            .map(|column| Self {
                start: self.start.wrapping_add(column),
                columns: width.min(self.columns - column),
                ..self
            })
            .collect()
    }
}

/// A vector of `len` numbers, whatever they are: the caller writes each before anybody reads it.
///
/// Clearing memory that is overwritten at once would be a pass of its own over every activation.
#[expect(
    clippy::uninit_vec,
    reason = "callers write every element, which are plain numbers"
)]
pub(crate) fn unwritten<T: Float>(len: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: `len` numbers fit, nothing of theirs is dropped, and callers write each before anybody
    // reads it, as they promise.
    unsafe { values.set_len(len) };
    values
}

/// What a product does with what its destination holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrites it.
    Replace,
    /// Adds to it.
    Add,
}

impl Write {
    /// How often the destination is gone through.
    pub(crate) fn passes(self) -> usize {
        match self {
            Self::Replace => 1,
            Self::Add => 2,
        }
    }
}

/// The matrices of a product in f32, if that is what they are and the processor has our kernels.
#[cfg(target_arch = "x86_64")]
fn for_panels<'d, 'a, T: Float>(
    destination: &'d mut MatrixMut<'_, T>,
    left: Matrix<'a, T>,
    right: Matrix<'a, T>,
) -> Option<(MatrixMut<'d, f32>, Matrix<'a, f32>, Matrix<'a, f32>)> {
    if TypeId::of::<T>() != TypeId::of::<f32>() || !panels::available() {
        return None;
    }
    let same = |matrix: Matrix<'a, T>| Matrix {
        // SAFETY: `T` is f32.
        data: unsafe { slice::from_raw_parts(matrix.data.as_ptr().cast(), matrix.data.len()) },
        rows: matrix.rows,
        columns: matrix.columns,
        row_stride: matrix.row_stride,
        column_stride: matrix.column_stride,
    };
    let destination = MatrixMut {
        start: destination.start.cast(),
        rows: destination.rows,
        columns: destination.columns,
        row_stride: destination.row_stride,
        lifetime: PhantomData,
    };
    Some((destination, same(left), same(right)))
}

/// `scale` * `left` * `right` into `destination`, on this thread.
pub(crate) fn product<T: Float>(
    destination: &mut MatrixMut<'_, T>,
    write: Write,
    scale: T,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
) {
    assert_eq!(destination.rows, left.rows, "rows of a product");
    assert_eq!(destination.columns, right.columns, "columns of a product");
    assert_eq!(left.columns, right.rows, "summed dimension of a product");
    #[cfg(target_arch = "x86_64")]
    if let Some((mut destination, left, right)) = for_panels(destination, left, right) {
        let scale = scale.wide() as f32;
        return panels::product(&mut destination, write, scale, left, right, Threads::One);
    }
    let stride = |stride: usize| isize::try_from(stride).expect("strides of slices fit in isize");
    // SAFETY: the three matrices lie in slices that are borrowed for the whole call, which their
    // constructors checked; the destination is borrowed mutably, so nothing else overlaps it; its
    // elements are initialised; `T` is f32 or f64, which `gemm` knows.
    unsafe {
        gemm::gemm(
            destination.rows,
            destination.columns,
            left.columns,
            destination.start,
            1,
            stride(destination.row_stride),
            write == Write::Add,
            left.data.as_ptr(),
            stride(left.column_stride),
            stride(left.row_stride),
            right.data.as_ptr(),
            stride(right.column_stride),
            stride(right.row_stride),
            T::ONE,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `left` * `right` into `destination`, tile by tile over the threads; the summed dimension is
/// never split between threads.
pub(crate) fn parallel_product<T: Float>(
    mut destination: MatrixMut<'_, T>,
    write: Write,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some((mut destination, left, right)) = for_panels(&mut destination, left, right) {
        return panels::product(&mut destination, write, 1.0, left, right, Threads::All);
    }
    let tiles: Vec<_> = destination
        .split_rows(TILE_ROWS)
        .into_iter()
        .zip((0..).step_by(TILE_ROWS))
        .flat_map(|(band, row)| {
            let columns = (0..).step_by(TILE_COLUMNS);
            let tiles = band.split_columns(TILE_COLUMNS).into_iter().zip(columns);
            tiles.map(move |(tile, column)| (tile, row, column))
        })
        .collect();
    tiles.into_par_iter().for_each(|(mut tile, row, column)| {
        let left = left.rows(row..row + tile.rows);
        let right = right.columns(column..column + tile.columns);
        product(&mut tile, write, T::ONE, left, right);
    });
}
