//! From summed gradients to changed weights.

use std::ops::Range;

use cordee_config::OptimizerConfig;
use cordee_memory::{Buffer, Layout, View};
use cordee_model::Parameter;
use cordee_ops::adamw::{self, AdamW};

use crate::{TrainError, TrainState, sums::Sums};

/// What the update needs to know of a step.
pub(crate) struct Update {
    /// The step, the first being 1.
    pub(crate) step: u64,
    /// Its learning rate.
    pub(crate) lr: f64,
    /// Tokens that the summed gradient is over.
    pub(crate) tokens_trained: f64,
}

/// The name of the first parameter of which `buffer`, which lies where `sums` does, holds something
/// whose sum of squares `is_bad`.
pub(crate) fn first_parameter(
    buffer: &Buffer,
    layout: &Layout,
    sums: &mut Sums,
    is_bad: fn(f64) -> bool,
) -> Result<Option<String>, TrainError> {
    for slot in layout.slots() {
        if is_bad(sums.squares_of(buffer.slot_view(slot)?)?) {
            return Ok(Some(slot.name().to_owned()));
        }
    }
    Ok(None)
}

/// Of a sum of squares: whether an element is infinite or NaN.
pub(crate) fn is_not_finite(squares: f64) -> bool {
    !squares.is_finite()
}

/// Of a sum of squares: whether every element is zero.
pub(crate) fn is_zero(squares: f64) -> bool {
    squares == 0.0
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
    for (range, decays) in updated_together(parameters, &state.layout) {
        let hyper = AdamW {
            lr: update.lr,
            beta1: config.betas[0],
            beta2: config.betas[1],
            eps: config.eps,
            weight_decay: if decays { config.weight_decay } else { 0.0 },
            step: update.step,
        };
        let shape = [range.len()];
        let compute = match &mut state.rounded {
            Some(rounded) => Some(rounded.view_mut(range.clone(), &shape)?),
            None => None,
        };
        let updated = adamw::State {
            params: state.parameters.view_mut(range.clone(), &shape)?,
            m: state.first_moment.view_mut(range.clone(), &shape)?,
            v: state.second_moment.view_mut(range.clone(), &shape)?,
            compute,
        };
        let gradients = state.gradients.view(range, &shape)?;
        adamw::step(updated, gradients, scale, &hyper)?;
    }
    Ok(())
}

/// Neighbours that decay or do not, as one range each, so that there are few calls. What lies between
/// parameters is zero, and an update leaves it so.
fn updated_together(parameters: &[Parameter], layout: &Layout) -> Vec<(Range<usize>, bool)> {
    let mut ranges: Vec<(Range<usize>, bool)> = Vec::new();
    for (parameter, slot) in parameters.iter().zip(layout.slots()) {
        let (slot, decays) = (slot.range(), parameter.decays());
        match ranges.last_mut() {
            Some((range, same)) if *same == decays => range.end = slot.end,
            _ => ranges.push((slot, decays)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use cordee_memory::DType;
    use cordee_model::Init;
    use cordee_ops::Device;

    use super::*;
    use crate::sums::Sums;

    #[test]
    fn the_first_bad_parameter_is_named() {
        let tensors = ["a", "b", "c"].map(|name| (name.to_owned(), vec![3]));
        let layout = Layout::new(DType::F32, tensors).unwrap();
        let mut buffer = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        let mut sums = Sums::new(&Device::HOST).unwrap();
        let mut first =
            |buffer: &Buffer, is_bad| first_parameter(buffer, &layout, &mut sums, is_bad).unwrap();
        assert_eq!(first(&buffer, is_zero).as_deref(), Some("a"));
        assert_eq!(first(&buffer, is_not_finite), None);
        for (slot, value) in layout.slots().iter().zip([1.0, f32::INFINITY, f32::NAN]) {
            buffer
                .slot_view_mut(slot)
                .unwrap()
                .as_mut_slice::<f32>()
                .unwrap()[2] = value;
        }
        assert_eq!(first(&buffer, is_not_finite).as_deref(), Some("b"));
        assert_eq!(first(&buffer, is_zero), None);
    }

    #[test]
    fn neighbours_are_updated_together() {
        let parameter = |name: &str, shape: &[usize]| Parameter::new(name, shape, Init::Ones);
        let parameters = [
            parameter("norm", &[3]),
            parameter("q", &[3, 2]),
            parameter("k", &[2, 2]),
            parameter("bias", &[5]),
        ];
        let tensors = parameters
            .each_ref()
            .map(|p| (p.name.clone(), p.shape.clone()));
        let layout = Layout::new(DType::F32, tensors).unwrap();
        let ranges = updated_together(&parameters, &layout);
        assert_eq!(ranges, [(0..3, false), (64..132, true), (192..197, false)]);
    }
}
