//! Normal deviates by the method of Box and Muller, computed in `f64`.

use rayon::prelude::*;

use super::Stream;
use crate::float::Float;

/// Elements of a task, a multiple of the 4 that a block of the generator gives.
const BLOCK: usize = 4 * 1024;

/// Element i is deviate `first` + i.
pub(super) fn normal_fill<T: Float>(values: &mut [T], stream: Stream, first: u64, std: f64) {
    values
        .par_chunks_mut(BLOCK)
        .enumerate()
        .for_each(|(block, values)| {
            let start = first + (block * BLOCK) as u64;
            // Those before the first whole block of the generator, then the others.
            let before = (start.next_multiple_of(4) - start).min(values.len() as u64);
            let (before, whole) = values.split_at_mut(before as usize);
            let normals = |index| {
                let [a, b, c, d] = stream.block(index);
                [normal_pair(a, b), normal_pair(c, d)]
            };
            let fill = |values: &mut [T], normals: &[f64]| {
                for (value, normal) in values.iter_mut().zip(normals) {
                    *value = T::of(normal * std);
                }
            };
            fill(
                before,
                &normals(start / 4).as_flattened()[(start % 4) as usize..],
            );
            for (index, values) in (start.div_ceil(4)..).zip(whole.chunks_mut(4)) {
                fill(values, normals(index).as_flattened());
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
