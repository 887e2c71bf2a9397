//! From summed gradients to changed weights.

use cordee_config::OptimizerConfig;
use cordee_memory::{Buffer, Layout, View};
use cordee_model::Parameter;
use cordee_ops::{
    OpError,
    adamw::{self, AdamW},
    gradient_norm,
};

use crate::{TrainError, TrainState};

/// What the update needs to know of a step.
pub(crate) struct Update {
    /// The step, the first being 1.
    pub(crate) step: u64,
    /// Its learning rate.
    pub(crate) lr: f64,
    /// Tokens that the summed gradient is over.
    pub(crate) tokens_trained: f64,
}

/// The norm of the mean gradient.
pub(crate) fn gradient_norm(state: &TrainState, tokens_trained: f64) -> Result<f64, TrainError> {
    let whole = state
        .gradients
        .view(0..state.layout.len(), &[state.layout.len()])?;
    Ok(gradient_norm::sum_of_squares(whole)?.sqrt() / tokens_trained)
}

/// The name of the first parameter of which `buffer` holds something that `is_bad`.
pub(crate) fn first_parameter(
    buffer: &Buffer,
    layout: &Layout,
    is_bad: fn(View<'_>) -> Result<bool, OpError>,
) -> Result<Option<String>, TrainError> {
    for slot in layout.slots() {
        if is_bad(buffer.slot_view(slot)?)? {
            return Ok(Some(slot.name().to_owned()));
        }
    }
    Ok(None)
}

/// Whether an element is infinite or NaN.
pub(crate) fn is_not_finite(values: View<'_>) -> Result<bool, OpError> {
    Ok(gradient_norm::first_non_finite(values)?.is_some())
}

/// Whether every element is zero.
pub(crate) fn is_zero(values: View<'_>) -> Result<bool, OpError> {
    Ok(gradient_norm::sum_of_squares(values)? == 0.0)
}

/// One step of `AdamW` on every parameter. The gradient is divided by the trained tokens and
/// clipped on the way, in the same pass.
pub(crate) fn apply(
    config: &OptimizerConfig,
    parameters: &[Parameter],
    state: &mut TrainState,
    update: &Update,
    grad_norm: f64,
) -> Result<(), TrainError> {
    let clip = clip_factor(config.clip_grad_norm, grad_norm);
    for (parameter, slot) in parameters.iter().zip(state.layout.slots()) {
        let hyper = AdamW {
            lr: update.lr,
            beta1: config.betas[0],
            beta2: config.betas[1],
            eps: config.eps,
            weight_decay: if parameter.decays() {
                config.weight_decay
            } else {
                0.0
            },
            step: update.step,
            gradient_scale: clip / update.tokens_trained,
        };
        let updated = adamw::State {
            params: state.parameters.slot_view_mut(slot)?,
            m: state.first_moment.slot_view_mut(slot)?,
            v: state.second_moment.slot_view_mut(slot)?,
        };
        adamw::step(updated, state.gradients.slot_view(slot)?, &hyper)?;
    }
    Ok(())
}

/// What a gradient of norm `grad_norm` is multiplied by; the same small number is added to the norm
/// as in `torch.nn.utils.clip_grad_norm_`.
pub(crate) fn clip_factor(max_norm: f64, grad_norm: f64) -> f64 {
    if max_norm == 0.0 {
        1.0
    } else {
        (max_norm / (grad_norm + 1e-6)).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use cordee_memory::DType;

    use super::*;

    #[test]
    fn clipping_scales_down_and_never_up() {
        assert!((clip_factor(1.0, 4.0) - 0.25).abs() < 1e-6);
        assert!((clip_factor(1.0, 0.5) - 1.0).abs() < f64::EPSILON);
        assert!((clip_factor(0.0, 1e9) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_first_bad_parameter_is_named() {
        let tensors = ["a", "b", "c"].map(|name| (name.to_owned(), vec![3]));
        let layout = Layout::new(DType::F32, tensors).unwrap();
        let mut buffer = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        let name = |buffer: &Buffer, is_bad| first_parameter(buffer, &layout, is_bad).unwrap();
        assert_eq!(name(&buffer, is_zero).as_deref(), Some("a"));
        assert_eq!(name(&buffer, is_not_finite), None);
        for (slot, value) in layout.slots().iter().zip([1.0, f32::INFINITY, f32::NAN]) {
            buffer
                .slot_view_mut(slot)
                .unwrap()
                .as_mut_slice::<f32>()
                .unwrap()[2] = value;
        }
        assert_eq!(name(&buffer, is_not_finite).as_deref(), Some("b"));
        assert_eq!(name(&buffer, is_zero), None);
    }
}
