//! Loops over elements.

use rayon::prelude::*;

use crate::{float::Float, gelu::curve::Curve};

/// Elements of a task.
const BLOCK: usize = 16 * 1024;

pub(super) fn forward<T: Float, C: Curve>(gate: &[T], up: &[T]) -> Vec<T> {
    let mut y = vec![T::ZERO; gate.len()];
    y.par_chunks_mut(BLOCK)
        .zip(gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK)))
        .for_each(|(y, (gate, up))| {
            for (y, (&gate, &up)) in y.iter_mut().zip(gate.iter().zip(up)) {
                *y = C::value(gate) * up;
            }
        });
    y
}

/// dup = dy * gelu(gate), and dgate = dy * up * gelu'(gate).
pub(super) fn backward<T: Float, C: Curve>(dy: &[T], gate: &[T], up: &[T]) -> (Vec<T>, Vec<T>) {
    let mut dgate = vec![T::ZERO; gate.len()];
    let mut dup = vec![T::ZERO; gate.len()];
    let inputs = gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK));
    dgate
        .par_chunks_mut(BLOCK)
        .zip(dup.par_chunks_mut(BLOCK))
        .zip(dy.par_chunks(BLOCK).zip(inputs))
        .for_each(|((dgate, dup), (dy, (gate, up)))| {
            let outputs = dgate.iter_mut().zip(dup);
            let inputs = dy.iter().zip(gate.iter().zip(up));
            for ((dgate, dup), (&dy, (&gate, &up))) in outputs.zip(inputs) {
                let (value, slope) = C::value_and_slope(gate);
                *dup = dy * value;
                *dgate = dy * up * slope;
            }
        });
    (dgate, dup)
}
