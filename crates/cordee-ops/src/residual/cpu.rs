//! A loop over elements.

use rayon::prelude::*;

use crate::{
    elements::{self, BLOCK},
    float::Float,
    matrix::unwritten,
};

pub(crate) fn forward<T: Float>(x: &[T], added: &[T]) -> Vec<T> {
    let mut y = unwritten(x.len());
    y.par_chunks_mut(BLOCK)
        .zip(x.par_chunks(BLOCK).zip(added.par_chunks(BLOCK)))
        .for_each(|(y, (x, added))| elements::add(y, x, added));
    y
}
