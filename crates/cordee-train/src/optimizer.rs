//! From summed gradients to changed weights.

use cordee_config::OptimizerConfig;
use cordee_memory::{Buffer, Layout, View};
use cordee_model::Parameter;
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

/// The name of the first parameter of which `buffer` holds something that `is_bad`.
pub(crate) fn first_parameter(
    buffer: &Buffer,
    layout: &Layout,
    mut is_bad: impl FnMut(View<'_>) -> Result<bool, TrainError>,
) -> Result<Option<String>, TrainError> {
    for slot in layout.slots() {
        if is_bad(buffer.slot_view(slot)?)? {
            return Ok(Some(slot.name().to_owned()));
        }
    }
    Ok(None)
}

/// Whether an element is infinite or NaN.
pub(crate) fn is_not_finite(values: View<'_>) -> Result<bool, TrainError> {
    Ok(gradient_norm::first_non_finite(values)?.is_some())
}

/// One step of `AdamW` on every parameter. The gradient is multiplied by `scale` on the way, in the
/// same pass; where that is not finite, nothing changes.
pub(crate) fn apply(
    config: &OptimizerConfig,
    parameters: &[Parameter],
    state: &mut TrainState,
    update: &Update,
    scale: View<'_>,
) -> Result<(), TrainError> {
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
        };
        let updated = adamw::State {
            params: state.parameters.slot_view_mut(slot)?,
            m: state.first_moment.slot_view_mut(slot)?,
            v: state.second_moment.slot_view_mut(slot)?,
            compute: None,
        };
        adamw::step(updated, state.gradients.slot_view(slot)?, scale, &hyper)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cordee_memory::DType;
    use cordee_ops::Device;

    use super::*;
    use crate::sums::Sums;

    #[test]
    fn the_first_bad_parameter_is_named() {
        let tensors = ["a", "b", "c"].map(|name| (name.to_owned(), vec![3]));
        let layout = Layout::new(DType::F32, tensors).unwrap();
        let mut buffer = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        let not_finite = |buffer: &Buffer| first_parameter(buffer, &layout, is_not_finite).unwrap();
        let mut sums = Sums::new(&Device::HOST).unwrap();
        let mut zero = |buffer: &Buffer| {
            first_parameter(buffer, &layout, |values| sums.are_zero(values)).unwrap()
        };
        assert_eq!(zero(&buffer).as_deref(), Some("a"));
        assert_eq!(not_finite(&buffer), None);
        for (slot, value) in layout.slots().iter().zip([1.0, f32::INFINITY, f32::NAN]) {
            buffer
                .slot_view_mut(slot)
                .unwrap()
                .as_mut_slice::<f32>()
                .unwrap()[2] = value;
        }
        assert_eq!(not_finite(&buffer).as_deref(), Some("b"));
        assert_eq!(zero(&buffer), None);
    }
}
