//! From summed gradients to changed weights.

use std::ops::Range;

use cordee_comm::ProcessGroup;
use cordee_config::OptimizerConfig;
use cordee_memory::{DType, Layout, View};
use cordee_model::Parameter;
use cordee_ops::{
    adamw::{self, AdamW, Chances},
    random::Stream,
};

use crate::{TrainError, TrainState, held::intersection, sums::Sums};

/// What the update needs to know of a step.
pub(crate) struct Update {
    /// The step, the first being 1.
    pub(crate) step: u64,
    /// Its learning rate.
    pub(crate) lr: f64,
    /// Tokens that the summed gradient is over.
    pub(crate) tokens_trained: f64,
    /// That of the run, of which the chances of rounding are.
    pub(crate) seed: u64,
}

/// The name of the first parameter of which the summed squares are `bad`.
pub(crate) fn first_parameter(
    layout: &Layout,
    squares: &[f64],
    bad: fn(f64) -> bool,
) -> Option<String> {
    let found = squares.iter().position(|&squares| bad(squares));
    found.map(|index| layout.slot(index).name().to_owned())
}

/// The sum of the squares of each parameter's gradient, over all ranks.
pub(crate) fn squares_of_gradients(
    state: &TrainState,
    sums: &mut Sums,
    group: &mut dyn ProcessGroup,
) -> Result<Vec<f64>, TrainError> {
    let mut squares = vec![0.0; state.layout.slots().len()];
    for (bucket, range) in state.updated().into_iter().enumerate() {
        for (index, slot) in state.layout.slots().iter().enumerate() {
            let part = intersection(&slot.range(), &range);
            if !part.is_empty() {
                squares[index] += sums.squares_of(state.gradients.view(bucket, part)?)?;
            }
        }
    }
    add_up(&mut squares, state.sharded, group)?;
    Ok(squares)
}

/// The sum of the squares of each parameter, over all ranks.
pub(crate) fn squares_of_weights(
    state: &TrainState,
    sums: &mut Sums,
    group: &mut dyn ProcessGroup,
) -> Result<Vec<f64>, TrainError> {
    let mut squares = vec![0.0; state.layout.slots().len()];
    let held = &state.parameters_held;
    for (index, _, place) in held.tensors(&state.layout) {
        let len = place.len();
        squares[index] += sums.squares_of(state.parameters.view(place, &[len])?)?;
    }
    let shared_out = held.len() < state.layout.len();
    add_up(&mut squares, shared_out, group)?;
    Ok(squares)
}

/// Sums over ranks what they hold parts of.
fn add_up(
    squares: &mut [f64],
    shared_out: bool,
    group: &mut dyn ProcessGroup,
) -> Result<(), TrainError> {
    if shared_out {
        group.sum_scalars(squares)?;
    }
    Ok(())
}

/// Of a sum of squares: whether an element is infinite or NaN.
pub(crate) fn is_not_finite(squares: f64) -> bool {
    !squares.is_finite()
}

/// Of a sum of squares: whether every element is zero.
pub(crate) fn is_zero(squares: f64) -> bool {
    squares == 0.0
}

/// One step of `AdamW` on every parameter that this rank updates. The gradient is multiplied by `scale`
/// on the way, in the same pass; where that is not finite, nothing changes.
pub(crate) fn apply(
    config: &OptimizerConfig,
    parameters: &[Parameter],
    state: &mut TrainState,
    update: &Update,
    scale: View<'_>,
) -> Result<(), TrainError> {
    let together = updated_together(parameters, &state.layout);
    let stream = Stream::named(update.seed, &format!("adamw {}", update.step));
    for (bucket, updated) in state.updated().into_iter().enumerate() {
        for (range, decays) in &together {
            let range = intersection(range, &updated);
            if range.is_empty() {
                continue;
            }
            let hyper = AdamW {
                lr: update.lr,
                beta1: config.betas[0],
                beta2: config.betas[1],
                eps: config.eps,
                weight_decay: if *decays { config.weight_decay } else { 0.0 },
                step: update.step,
            };
            let shape = [range.len()];
            let gradients = state.gradients.view(bucket, range.clone())?;
            let weights = state.parameters_held.find(&range).expect(UPDATED);
            let moments = state.moments_held.find(&range).expect(UPDATED);
            let params = state.parameters.view_mut(weights, &shape)?;
            let m = state.first_moment.view_mut(moments.clone(), &shape)?;
            let v = state.second_moment.view_mut(moments, &shape)?;
            if params.dtype() == DType::Bf16 {
                let chances = Chances {
                    stream,
                    first: range.start as u64,
                };
                let views = adamw::Bf16State { params, m, v };
                adamw::step_bf16(views, chances, gradients, scale, &hyper)?;
                continue;
            }
            let compute = match &mut state.rounded {
                Some(rounded) => Some(rounded.view_mut(range, &shape)?),
                None => None,
            };
            let views = adamw::State {
                params,
                m,
                v,
                compute,
            };
            adamw::step(views, gradients, scale, &hyper)?;
        }
    }
    Ok(())
}

const UPDATED: &str = "a rank holds what it updates";

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
    use cordee_comm::SharedMemoryGroup;
    use cordee_config::{ModelConfig, ParallelConfig};
    use cordee_model::{Init, Model};
    use cordee_ops::Device;

    use super::*;
    use crate::Compute;

    #[test]
    fn the_first_bad_parameter_is_named() {
        let config = ModelConfig {
            tie_embeddings: true,
            init_std: 0.1,
            ..ModelConfig::llama(8, 1, 2, 8)
        };
        let model = Model::new(&config, 16, 4).unwrap();
        let mut group = SharedMemoryGroup::solo();
        let parallel = ParallelConfig::default();
        let mut state = TrainState::new(&model, &Compute::HOST, &parallel, &mut group).unwrap();
        let mut sums = Sums::new(&Device::HOST, 1).unwrap();
        let names: Vec<String> = (state.layout.slots().iter())
            .map(|slot| slot.name().to_owned())
            .collect();
        let last = names.len() - 1;
        let mut first = |state: &TrainState, bad| {
            let squares = squares_of_gradients(state, &mut sums, &mut group).unwrap();
            first_parameter(&state.layout, &squares, bad)
        };
        assert_eq!(first(&state, is_zero).as_ref(), Some(&names[0]));
        assert_eq!(first(&state, is_not_finite), None);
        for id in 0..=last {
            let bad = match id {
                1 => f32::INFINITY,
                3 => f32::NAN,
                _ => 1.0,
            };
            let mut views = state.gradients.lend(&[id]).unwrap();
            views[0].as_mut_slice::<f32>().unwrap()[2] = bad;
        }
        assert_eq!(first(&state, is_not_finite).as_ref(), Some(&names[1]));
        assert_eq!(first(&state, is_zero), None);
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
