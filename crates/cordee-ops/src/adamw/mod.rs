//! AdamW (Loshchilov and Hutter, 2019) over flat memory, with PyTorch's formula.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use cordee_memory::{DType, View, ViewMut};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    operand::{Operator, with_float},
    random::Stream,
    timing::{Pass, Work},
};

const OP: Operator = Operator("adamw");

/// Hyper-parameters of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, after its bias is corrected.
    pub eps: f64,
    /// Decoupled weight decay; the step takes `lr * weight_decay` of each parameter away.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
}

/// What is the same for all parameters of a step, in the order in which it is used.
struct Coefficients {
    /// What is left of a parameter.
    keep: f64,
    beta2: f64,
    rest1: f64,
    rest2: f64,
    /// Root of the second moment's bias correction.
    root_correction: f64,
    eps: f64,
    /// Learning rate over the first moment's bias correction.
    step_size: f64,
}

impl Coefficients {
    fn new(hyper: &AdamW) -> Self {
        // Powers beyond i32::MAX steps are 0 in any case.
        let power = i32::try_from(hyper.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - hyper.beta1.powi(power);
        let correction2 = 1.0 - hyper.beta2.powi(power);
        Self {
            keep: 1.0 - hyper.lr * hyper.weight_decay,
            beta2: hyper.beta2,
            rest1: 1.0 - hyper.beta1,
            rest2: 1.0 - hyper.beta2,
            root_correction: correction2.sqrt(),
            eps: hyper.eps,
            step_size: hyper.lr / correction1,
        }
    }
}

/// What a step updates: parameters and their moments, flat and of one length; on a GPU `f32`.
#[derive(Debug)]
pub struct State<'a> {
    /// The parameters.
    pub params: ViewMut<'a>,
    /// Running mean of the gradients.
    pub m: ViewMut<'a>,
    /// Running mean of the squared gradients.
    pub v: ViewMut<'a>,
    /// What the model computes with, if that is a copy of the parameters: written, too. On a GPU
    /// `bf16` or `f32`, on the host of the parameters' type.
    pub compute: Option<ViewMut<'a>>,
}

impl State<'_> {
    /// Reads and writes all three, reads the gradients, writes the copy.
    fn work(&self, gradients: &View<'_>) -> Work {
        let work = Work::moved(2 * self.params.len(), self.params.dtype())
            .moving(2 * self.m.len(), self.m.dtype())
            .moving(2 * self.v.len(), self.v.dtype())
            .moving(gradients.len(), gradients.dtype());
        match &self.compute {
            Some(compute) => work.moving(compute.len(), compute.dtype()),
            None => work,
        }
    }
}

/// What a step updates where weights and moments are `bf16`, on a GPU alone: flat and of one length.
/// There is no other copy of them, so what a step changes must be rounded up or down by chance, in
/// proportion to how near either is: rounded to the nearest, most changes would be lost.
#[derive(Debug)]
pub struct Bf16State<'a> {
    /// The parameters, which the model computes with.
    pub params: ViewMut<'a>,
    /// Running mean of the gradients.
    pub m: ViewMut<'a>,
    /// Running mean of the squared gradients.
    pub v: ViewMut<'a>,
}

/// Where the chances of a step come from.
#[derive(Clone, Copy, Debug)]
pub struct Chances {
    /// The numbers of this step: block i is those of the parameters of places 2i and 2i + 1.
    pub stream: Stream,
    /// The place of the first parameter of the range among all: whoever updates a parameter, with
    /// whichever others, rounds it alike.
    pub first: u64,
}

/// [`step`] where weights and moments are `bf16`: computed in `f32`, rounded stochastically.
#[cfg_attr(
    not(feature = "cuda"),
    expect(clippy::needless_pass_by_value, reason = "the GPU's writes them")
)]
pub fn step_bf16(
    state: Bf16State<'_>,
    chances: Chances,
    gradients: View<'_>,
    scale: View<'_>,
    hyper: &AdamW,
) -> Result<()> {
    let mut timed = OP.timed(Pass::Update);
    timed
        .does(Work::moved(6 * state.params.len(), DType::Bf16).moving(gradients.len(), DType::F32));
    check_step(hyper)?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&state.params.as_view()) {
        return cuda::step_bf16(&gpu, state, chances, gradients, scale, hyper);
    }
    let _ = (chances, scale);
    Err(OpError::HostBf16 { op: OP.0 })
}

fn check_step(hyper: &AdamW) -> Result<()> {
    if hyper.step > 0 {
        return Ok(());
    }
    Err(OpError::Argument {
        op: OP.0,
        name: "step",
        value: 0.0,
        expected: "1 or more: the first step is number 1",
    })
}

/// One step over a range of parameters. Every element is updated on its own, so any division into
/// ranges gives the same bits. Gradients are multiplied by `scale`, `f64` `[1]`, first: one over the
/// trained tokens, times the factor that clips their norm
/// ([`gradient_norm::scale`](crate::gradient_norm::scale)). Where it is not finite, nothing changes.
pub fn step(state: State<'_>, gradients: View<'_>, scale: View<'_>, hyper: &AdamW) -> Result<()> {
    let mut timed = OP.timed(Pass::Update);
    timed.does(state.work(&gradients));
    check_step(hyper)?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of_view(&state.params.as_view()) {
        return cuda::step(&gpu, state, gradients, scale, hyper);
    }
    let State {
        mut params,
        mut m,
        mut v,
        mut compute,
    } = state;
    let shape = gradients.shape();
    with_float!(params.dtype(), T => {
        let gradients = OP.weight::<T>("gradients", gradients, shape)?;
        let params = OP.gradient::<T>("params", &mut params, shape)?;
        let m = OP.gradient::<T>("m", &mut m, shape)?;
        let v = OP.gradient::<T>("v", &mut v, shape)?;
        let compute = compute
            .as_mut()
            .map(|compute| OP.gradient::<T>("compute", compute, shape))
            .transpose()?;
        let scale = OP.weight::<f64>("scale", scale, &[1])?[0];
        if scale.is_finite() {
            cpu::step(params, gradients, [m, v], scale, &Coefficients::new(hyper));
            if let Some(compute) = compute {
                compute.copy_from_slice(params);
            }
        }
        Ok(())
    })
}
