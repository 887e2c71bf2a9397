//! Three products of matrices. Sizes are `[n, in, out]`.

use crate::{
    float::Float,
    matrix::{Matrix, MatrixMut, Write, parallel_product},
};

pub(super) fn forward<T: Float>(x: &[T], weight: &[T], sizes: [usize; 3]) -> Vec<T> {
    let [n, input, output] = sizes;
    let mut y = vec![T::ZERO; n * output];
    parallel_product(
        MatrixMut::new(&mut y, n, output),
        Write::Replace,
        Matrix::new(x, n, input),
        Matrix::new(weight, output, input).transposed(),
    );
    y
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
