//! From summed gradients to changed weights.

use cordee_config::OptimizerConfig;
use cordee_model::{Model, Parameter};
use cordee_ops::{
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

/// The first parameter whose gradient `is_bad`, by its name.
pub(crate) fn first_parameter(
    model: &Model,
    state: &TrainState,
    is_bad: impl Fn(cordee_memory::View<'_>) -> Result<bool, TrainError>,
) -> Result<Option<String>, TrainError> {
    for (parameter, slot) in model.parameters().iter().zip(state.layout.slots()) {
        if is_bad(state.gradients.slot_view(slot)?)? {
            return Ok(Some(parameter.name.clone()));
        }
    }
    Ok(None)
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
