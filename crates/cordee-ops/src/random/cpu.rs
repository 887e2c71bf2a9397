//! Normal deviates by the method of Box and Muller, computed in `f64`.

use rayon::prelude::*;

use super::Stream;
use crate::float::Float;

/// Elements of a task, a multiple of the 4 that a block of the generator gives.
const BLOCK: usize = 4 * 1024;

pub(super) fn normal_fill<T: Float>(values: &mut [T], stream: Stream, std: f64) {
    values
        .par_chunks_mut(BLOCK)
        .enumerate()
        .for_each(|(block, values)| {
            let first = (block * BLOCK / 4) as u64;
            for (index, values) in (first..).zip(values.chunks_mut(4)) {
                let [a, b, c, d] = stream.block(index);
                let normals = [normal_pair(a, b), normal_pair(c, d)];
                for (value, normal) in values.iter_mut().zip(normals.as_flattened()) {
                    *value = T::of(normal * std);
                }
            }
        });
}

/// Two independent deviates from two uniform numbers.
fn normal_pair(radius: u32, angle: u32) -> [f64; 2] {
    let radius = (-2.0 * unit(radius).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * unit(angle)).sin_cos();
    [radius * cos, radius * sin]
}

/// A number between 0 and 1, both excluded.
fn unit(bits: u32) -> f64 {
    (f64::from(bits) + 0.5) / (f64::from(u32::MAX) + 1.0)
}
