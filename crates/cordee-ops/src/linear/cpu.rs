//! Three products of matrices, and the bias. Sizes are `[n, in, out]`.

use rayon::prelude::*;

use crate::{
    float::Float,
    matrix::{Matrix, MatrixMut, Write, parallel_product, unwritten},
    simd::vectorised,
};

/// Columns of the bias's gradient that one task sums, down all rows.
const COLUMNS: usize = 64;

/// What a product is added to.
pub(super) struct Added<'a, T> {
    /// To each row.
    pub(super) bias: Option<&'a [T]>,
    /// `[n, out]`.
    pub(super) residual: Option<&'a [T]>,
}

pub(super) fn forward<T: Float>(
    x: &[T],
    weight: &[T],
    added: &Added<'_, T>,
    sizes: [usize; 3],
) -> Vec<T> {
    let [n, input, output] = sizes;
    let mut y = unwritten(n * output);
    let rows = y.par_chunks_mut(output);
    let write = match *added {
        Added {
            bias: None,
            residual: None,
        } => Write::Replace,
        Added {
            bias: Some(bias),
            residual: None,
        } => {
            rows.for_each(|y| y.copy_from_slice(bias));
            Write::Add
        }
        Added {
            bias,
            residual: Some(residual),
        } => {
            let pairs = rows.zip(residual.par_chunks(output));
            pairs.for_each(|(y, residual)| {
                y.copy_from_slice(residual);
                for (y, &bias) in y.iter_mut().zip(bias.unwrap_or_default()) {
                    *y += bias;
                }
            });
            Write::Add
        }
    };
    parallel_product(
        MatrixMut::new(&mut y, n, output),
        write,
        Matrix::new(x, n, input),
        Matrix::new(weight, output, input).transposed(),
    );
    y
}

/// Sums in `f64`: thousands of rows, added one by one to an f32, would lose digits.
pub(super) fn backward_bias<T: Float>(dy: &[T], dbias: &mut [T]) {
    let output = dbias.len();
    let bands = dbias.par_chunks_mut(COLUMNS).enumerate();
    bands.for_each(|(band, dbias)| {
        add_column_sums(dy, output, band * COLUMNS, dbias);
    });
}

vectorised! {
    /// Adds the sums of the columns from `first` on.
    fn add_column_sums<T: Float>(dy: &[T], output: usize, first: usize, dbias: &mut [T]) {
        let mut sums = [0.0; COLUMNS];
        for dy in dy.chunks_exact(output) {
            for (sum, dy) in sums.iter_mut().zip(&dy[first..]) {
                *sum += dy.wide();
            }
        }
        for (dbias, sum) in dbias.iter_mut().zip(sums) {
            *dbias += T::of(sum);
        }
    }
}

pub(super) fn backward_weight<T: Float>(
    dy: &[T],
    x: &[T],
    dweight: &mut [T],
    write: Write,
    sizes: [usize; 3],
) {
    let [n, input, output] = sizes;
    parallel_product(
        MatrixMut::new(dweight, output, input),
        write,
        Matrix::new(dy, n, output).transposed(),
        Matrix::new(x, n, input),
    );
}

pub(super) fn backward_input<T: Float>(
    dy: &[T],
    weight: &[T],
    dx: &mut [T],
    sizes: [usize; 3],
    add: bool,
) {
    let [n, input, output] = sizes;
    parallel_product(
        MatrixMut::new(dx, n, input),
        if add { Write::Add } else { Write::Replace },
        Matrix::new(dy, n, output),
        Matrix::new(weight, output, input),
    );
}
