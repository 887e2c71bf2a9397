//! Three products of matrices, and the bias. Sizes are `[n, in, out]`.

use rayon::prelude::*;

use crate::{
    float::Float,
    matrix::{Matrix, MatrixMut, Write, parallel_product, unwritten},
    simd::vectorised,
};

/// Columns of the bias's gradient that one task sums, down all rows.
const COLUMNS: usize = 64;

pub(super) fn forward<T: Float>(
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    sizes: [usize; 3],
) -> Vec<T> {
    let [n, input, output] = sizes;
    let mut y = unwritten(n * output);
    if let Some(bias) = bias {
        y.par_chunks_mut(output)
            .for_each(|y| y.copy_from_slice(bias));
    }
    parallel_product(
        MatrixMut::new(&mut y, n, output),
        if bias.is_some() {
            Write::Add
        } else {
            Write::Replace
        },
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

pub(super) fn backward_weight<T: Float>(dy: &[T], x: &[T], dweight: &mut [T], sizes: [usize; 3]) {
    let [n, input, output] = sizes;
    parallel_product(
        MatrixMut::new(dweight, output, input),
        Write::Add,
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
