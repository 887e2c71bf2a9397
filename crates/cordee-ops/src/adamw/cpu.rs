//! One pass over all four arrays.

use rayon::prelude::*;

use super::Coefficients;
use crate::{float::Float, simd::vectorised};

/// Elements of a task: four arrays of them fit in a core's cache.
const BLOCK: usize = 16 * 1024;

/// The constants of a step, in the numbers of the parameters.
struct Constants<T> {
    gradient_scale: T,
    keep: T,
    beta2: T,
    rest1: T,
    rest2: T,
    root_correction: T,
    eps: T,
    step_size: T,
}

pub(super) fn step<T: Float>(
    params: &mut [T],
    gradients: &[T],
    moments: [&mut [T]; 2],
    gradient_scale: f64,
    coefficients: &Coefficients,
) {
    let [m, v] = moments;
    let constants = Constants::<T>::new(gradient_scale, coefficients);
    params
        .par_chunks_mut(BLOCK)
        .zip(gradients.par_chunks(BLOCK))
        .zip(m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK)))
        .for_each(|((params, gradients), (m, v))| {
            update_block(params, gradients, [m, v], &constants);
        });
}

vectorised! {
    fn update_block<T: Float>(
        params: &mut [T],
        gradients: &[T],
        moments: [&mut [T]; 2],
        constants: &Constants<T>,
    ) {
        let [m, v] = moments;
        let moments = m.iter_mut().zip(v);
        for ((param, &gradient), (m, v)) in params.iter_mut().zip(gradients).zip(moments) {
            constants.update(param, gradient, m, v);
        }
    }
}

impl<T: Float> Constants<T> {
    fn new(gradient_scale: f64, coefficients: &Coefficients) -> Self {
        Self {
            gradient_scale: T::of(gradient_scale),
            keep: T::of(coefficients.keep),
            beta2: T::of(coefficients.beta2),
            rest1: T::of(coefficients.rest1),
            rest2: T::of(coefficients.rest2),
            root_correction: T::of(coefficients.root_correction),
            eps: T::of(coefficients.eps),
            step_size: T::of(coefficients.step_size),
        }
    }

    /// param *= 1 - lr wd; m += (g - m)(1 - beta1); v = beta2 v + (1 - beta2) g^2;
    /// param -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
    #[inline(always)]
    fn update(&self, param: &mut T, gradient: T, m: &mut T, v: &mut T) {
        let gradient = gradient * self.gradient_scale;
        *m += (gradient - *m) * self.rest1;
        *v = *v * self.beta2 + gradient * gradient * self.rest2;
        let denominator = v.sqrt() / self.root_correction + self.eps;
        *param = *param * self.keep - self.step_size * (*m / denominator);
    }
}
