//! Loops over elements.

use rayon::prelude::*;

use crate::{
    elements::BLOCK, float::Float, gelu::curve::Curve, matrix::unwritten, simd::vectorised,
};

pub(super) fn forward<T: Float, C: Curve>(gate: &[T], up: &[T]) -> Vec<T> {
    let mut y = unwritten(gate.len());
    y.par_chunks_mut(BLOCK)
        .zip(gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK)))
        .for_each(|(y, (gate, up))| forward_block::<T, C>(y, gate, up));
    y
}

pub(super) fn backward<T: Float, C: Curve>(dy: &[T], gate: &[T], up: &[T]) -> (Vec<T>, Vec<T>) {
    let mut dgate = unwritten(gate.len());
    let mut dup = unwritten(gate.len());
    let inputs = gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK));
    dgate
        .par_chunks_mut(BLOCK)
        .zip(dup.par_chunks_mut(BLOCK))
        .zip(dy.par_chunks(BLOCK).zip(inputs))
        .for_each(|((dgate, dup), (dy, (gate, up)))| {
            backward_block::<T, C>([dgate, dup], dy, gate, up);
        });
    (dgate, dup)
}

vectorised! {
    fn forward_block<T: Float, C: Curve>(y: &mut [T], gate: &[T], up: &[T]) {
        for (y, (&gate, &up)) in y.iter_mut().zip(gate.iter().zip(up)) {
            *y = C::value(gate) * up;
        }
    }

    /// dup = dy * gelu(gate), and dgate = dy * up * gelu'(gate).
    fn backward_block<T: Float, C: Curve>(
        gradients: [&mut [T]; 2],
        dy: &[T],
        gate: &[T],
        up: &[T],
    ) {
        let [dgate, dup] = gradients;
        let outputs = dgate.iter_mut().zip(dup);
        let inputs = dy.iter().zip(gate.iter().zip(up));
        for ((dgate, dup), (&dy, (&gate, &up))) in outputs.zip(inputs) {
            let (value, slope) = C::value_and_slope(gate);
            *dup = dy * value;
            *dgate = dy * up * slope;
        }
    }
}
