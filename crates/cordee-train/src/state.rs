//! What training changes: weights, gradients and moments.

use std::ops::Range;

use cordee_comm::{ProcessGroup, shard_range};
use cordee_config::{ParallelConfig, Shard};
use cordee_memory::{Buffer, DType, Layout, View};
use cordee_model::Model;
use cordee_ops::Device;
use half::bf16;

use crate::{TrainError, buckets::Buckets, held::Held};

/// Elements that go to a device at once when weights and moments are read, a GiB of f32; more, if a tensor has.
/// The models of tests are small.
pub(crate) const PART: usize = if cfg!(test) { 1 << 7 } else { 256 << 20 };

/// Where a model computes, and in which numbers.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Where everything is.
    pub device: Device,
    /// Those of weights and activations: `f32`, or on a GPU `bf16`.
    pub numbers: DType,
    /// Those of what the optimizer keeps: `f32`, or `bf16` where `numbers` are.
    pub states: DType,
}

impl Compute {
    /// In `f32` on the host.
    pub const HOST: Self = Self {
        device: Device::HOST,
        numbers: DType::F32,
        states: DType::F32,
    };
}

/// The state of one rank, on the device that it computes on.
#[derive(Debug)]
pub struct TrainState {
    /// Where each parameter lies among all of them.
    pub layout: Layout,
    /// Weights, as the optimizer keeps them: those that `parameters_held` says.
    pub parameters: Buffer,
    /// All weights, unless ranks share out the optimizer's state and the model computes with a copy.
    pub(crate) parameters_held: Held,
    /// What the model computes with in place of the weights: all of them, rounded.
    pub rounded: Option<Buffer>,
    /// Sums of gradients.
    pub gradients: Buckets,
    /// First moments of the gradient: those that `moments_held` says.
    pub first_moment: Buffer,
    /// Second moments of the gradient, likewise.
    pub second_moment: Buffer,
    /// All moments, unless ranks share them out.
    pub(crate) moments_held: Held,
    /// This rank's shard of each bucket.
    own: Vec<Range<usize>>,
    /// Whether this rank updates its shards alone.
    pub(crate) sharded: bool,
    /// Optimizer steps done.
    pub step: u64,
}

impl TrainState {
    /// Allocates the state of `model`, all zero.
    pub fn new(
        model: &Model,
        compute: &Compute,
        parallel: &ParallelConfig,
        group: &mut dyn ProcessGroup,
    ) -> Result<Self, TrainError> {
        let layout = model.layout(DType::F32)?;
        let (device, len) = (&compute.device, layout.len());
        let gradients = Buckets::new(model, &layout, parallel.bucket_size.0, device, group)?;
        let (rank, world) = (group.rank(), group.world_size());
        let shard = |range| shard_range(range, world, rank);
        let own: Vec<_> = gradients.ranges().map(shard).collect();

        let sharded = parallel.shard == Shard::Optimizer && world > 1;
        let all = Held::all(len);
        let moments_held = if sharded {
            Held::only(own.iter().cloned())
        } else {
            all.clone()
        };
        let (numbers, states) = (compute.numbers, compute.states);
        let (parameters_held, rounded) = if numbers == states {
            (all, None)
        } else {
            (moments_held.clone(), Some(device.zeroed(numbers, len)?))
        };
        let gathered_on_host = sharded && rounded.is_none() && device.facts().is_none();
        let parameters = if gathered_on_host {
            group.allocate(DType::F32, len)?
        } else {
            device.zeroed(states, parameters_held.len())?
        };
        Ok(Self {
            parameters,
            parameters_held,
            rounded,
            gradients,
            first_moment: device.zeroed(states, moments_held.len())?,
            second_moment: device.zeroed(states, moments_held.len())?,
            moments_held,
            own,
            sharded,
            step: 0,
            layout,
        })
    }

    /// This rank's shard of each bucket, in the layout of all parameters.
    pub(crate) fn own(&self) -> &[Range<usize>] {
        &self.own
    }

    /// What this rank updates of each bucket.
    pub(crate) fn updated(&self) -> Vec<Range<usize>> {
        if self.sharded {
            self.own.clone()
        } else {
            self.gradients.ranges().collect()
        }
    }

    /// Has every rank hold all that the model computes with, after each has updated its part.
    pub(crate) fn gather(&mut self, group: &mut dyn ProcessGroup) -> Result<(), TrainError> {
        if !self.sharded {
            return Ok(());
        }
        let computed = self.rounded.as_mut().unwrap_or(&mut self.parameters);
        for range in self.gradients.ranges() {
            group.all_gather(computed, range)?;
        }
        Ok(group.fence()?)
    }

    /// A view of each parameter as the model computes with it, in the model's order.
    pub fn parameter_views(&self) -> Result<Vec<View<'_>>, TrainError> {
        parameter_views(&self.layout, self.computed())
    }

    /// What the model computes with.
    pub(crate) fn computed(&self) -> &Buffer {
        self.rounded.as_ref().unwrap_or(&self.parameters)
    }

    /// Writes the weights that `model` begins with, where they are: each element depends on the seed and
    /// on its place alone, so that nobody need have all of them.
    pub(crate) fn initialise(&mut self, model: &Model, seed: u64) -> Result<(), TrainError> {
        let parameters = model.parameters();
        for (index, part, place) in self.parameters_held.tensors(&self.layout) {
            let mut view = self.parameters.view_mut(place, &[part.len()])?;
            parameters[index].initialise(&mut view, seed, part.start)?;
        }
        if let Some(rounded) = &mut self.rounded {
            model.initialise(&self.layout, rounded, seed)?;
        }
        Ok(())
    }

    /// Has `fill` write all weights, in `f32`, by the layout that it is given: all at once where they are
    /// computed with, and in parts where they go to a device, so that ranks do not each have a copy of all.
    pub(crate) fn fill_parameters<E>(
        &mut self,
        mut fill: impl FnMut(&Layout, &mut Buffer) -> Result<(), E>,
    ) -> Result<(), TrainError>
    where
        TrainError: From<E>,
    {
        if !self.parameters.is_on_device() {
            return Ok(fill(&self.layout, &mut self.parameters)?);
        }
        for (first, layout) in self.layout.parts(PART)? {
            let mut filled = Buffer::zeroed(DType::F32, layout.len())?;
            fill(&layout, &mut filled)?;
            let numbers = self.computed().dtype();
            let mut rounded = None;
            if numbers == DType::Bf16 {
                rounded = Some(to_bf16(&filled)?);
            }
            if let (Some(to), Some(rounded)) = (&mut self.rounded, &rounded) {
                to.write_bytes(first * numbers.size_in_bytes(), rounded.as_bytes()?)?;
            }
            let kept = self.parameters.dtype();
            let from = rounded.as_ref().filter(|_| kept == DType::Bf16);
            let (from, width) = (from.unwrap_or(&filled).as_bytes()?, kept.size_in_bytes());
            for (part, place) in self.parameters_held.parts(first..first + layout.len()) {
                let part = part.start - first..part.end - first;
                let bytes = &from[part.start * width..part.end * width];
                self.parameters.write_bytes(place.start * width, bytes)?;
            }
        }
        Ok(())
    }

    /// What is saved: weights and moments, and which of them are here.
    pub(crate) fn persistent(&self) -> [(&'static str, &Buffer, &Held); 3] {
        let (parameters, moments) = (&self.parameters_held, &self.moments_held);
        [
            ("", &self.parameters, parameters),
            (FIRST_MOMENT, &self.first_moment, moments),
            (SECOND_MOMENT, &self.second_moment, moments),
        ]
    }

    /// The moments, to be filled.
    pub(crate) fn moments_mut(&mut self) -> [(&'static str, &mut Buffer); 2] {
        [
            (FIRST_MOMENT, &mut self.first_moment),
            (SECOND_MOMENT, &mut self.second_moment),
        ]
    }

    /// What must be equal on every rank.
    pub(crate) fn replicated(&self) -> Vec<&Buffer> {
        if self.sharded {
            return vec![self.computed()];
        }
        vec![&self.parameters, &self.first_moment, &self.second_moment]
    }
}

/// The same numbers, rounded.
fn to_bf16(weights: &Buffer) -> Result<Buffer, TrainError> {
    let mut narrow = Buffer::zeroed(DType::Bf16, weights.len())?;
    let pairs = narrow.as_mut_slice::<bf16>()?.iter_mut();
    for (narrow, &weight) in pairs.zip(weights.as_slice::<f32>()?) {
        *narrow = bf16::from_f32(weight);
    }
    Ok(narrow)
}

/// A view of each tensor of `layout` in `buffer`.
pub(crate) fn parameter_views<'a>(
    layout: &Layout,
    buffer: &'a Buffer,
) -> Result<Vec<View<'a>>, TrainError> {
    Ok(layout
        .slots()
        .iter()
        .map(|slot| buffer.slot_view(slot))
        .collect::<Result<_, _>>()?)
}

// Prefixes of tensor names in a checkpoint; weights go by their own names.
const FIRST_MOMENT: &str = "adamw.m.";
const SECOND_MOMENT: &str = "adamw.v.";
