//! What training changes: weights, gradients and moments, each one flat buffer.

use cordee_comm::ProcessGroup;
use cordee_memory::{Buffer, DType, Layout, View};
use cordee_model::Model;
use cordee_ops::Device;
use half::bf16;

use crate::TrainError;

/// Where a model computes, and in which numbers.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Where everything is.
    pub device: Device,
    /// Those of weights and activations: `f32`, or on a GPU `bf16`.
    pub numbers: DType,
}

impl Compute {
    /// In `f32` on the host.
    pub const HOST: Self = Self {
        device: Device::HOST,
        numbers: DType::F32,
    };
}

/// The state of one rank, on the device that it computes on.
#[derive(Debug)]
pub struct TrainState {
    /// Where each parameter lies, in every one of the buffers.
    pub layout: Layout,
    /// Weights, in `f32`.
    pub parameters: Buffer,
    /// What the model computes with in place of them: the same, rounded.
    pub rounded: Option<Buffer>,
    /// Sums of gradients; on the host in memory that the other ranks read.
    pub gradients: Buffer,
    /// First moments of the gradient.
    pub first_moment: Buffer,
    /// Second moments of the gradient.
    pub second_moment: Buffer,
    /// Optimizer steps done.
    pub step: u64,
    /// Memory of the host that the other ranks read, by which gradients of a device are summed.
    exchanged: Option<Buffer>,
}

impl TrainState {
    /// Allocates the state of `model`, all zero.
    pub fn new(
        model: &Model,
        compute: &Compute,
        group: &mut dyn ProcessGroup,
    ) -> Result<Self, TrainError> {
        let layout = model.layout(DType::F32)?;
        let (device, len) = (&compute.device, layout.len());
        let zeroed = || device.zeroed(DType::F32, len);
        let on_host = device.facts().is_none();
        let rounded = match compute.numbers {
            DType::F32 => None,
            numbers => Some(device.zeroed(numbers, len)?),
        };
        Ok(Self {
            parameters: zeroed()?,
            rounded,
            gradients: if on_host {
                group.allocate(DType::F32, len)?
            } else {
                zeroed()?
            },
            first_moment: zeroed()?,
            second_moment: zeroed()?,
            step: 0,
            exchanged: if on_host || group.world_size() == 1 {
                None
            } else {
                Some(group.allocate(DType::F32, len)?)
            },
            layout,
        })
    }

    /// A view of each parameter as the model computes with it, in the model's order.
    pub fn parameter_views(&self) -> Result<Vec<View<'_>>, TrainError> {
        parameter_views(&self.layout, self.computed())
    }

    /// What the model computes with.
    pub(crate) fn computed(&self) -> &Buffer {
        self.rounded.as_ref().unwrap_or(&self.parameters)
    }

    /// Has `fill` write the weights.
    pub(crate) fn fill_parameters<E>(
        &mut self,
        fill: impl FnOnce(&Layout, &mut Buffer) -> Result<(), E>,
    ) -> Result<(), TrainError>
    where
        TrainError: From<E>,
    {
        if self.parameters.is_on_device() {
            let mut filled = Buffer::zeroed(DType::F32, self.layout.len())?;
            fill(&self.layout, &mut filled)?;
            self.parameters.copy_from_host(&filled)?;
        } else {
            fill(&self.layout, &mut self.parameters)?;
        }
        self.round()
    }

    /// Rounds the weights for the model, after they were set. The optimizer does it on its way.
    pub(crate) fn round(&mut self) -> Result<(), TrainError> {
        let Some(rounded) = &mut self.rounded else {
            return Ok(());
        };
        let weights = self.parameters.to_host()?;
        let mut narrow = Buffer::zeroed(DType::Bf16, weights.len())?;
        let pairs = narrow.as_mut_slice::<bf16>()?.iter_mut();
        for (narrow, &weight) in pairs.zip(weights.as_slice::<f32>()?) {
            *narrow = bf16::from_f32(weight);
        }
        Ok(rounded.copy_from_host(&narrow)?)
    }

    /// Sums the gradients over all ranks.
    pub(crate) fn reduce_gradients(
        &mut self,
        group: &mut dyn ProcessGroup,
    ) -> Result<(), TrainError> {
        let all = 0..self.layout.len();
        match &mut self.exchanged {
            Some(exchanged) => {
                self.gradients.copy_to_host(exchanged)?;
                group.all_reduce(exchanged, all)?;
                Ok(self.gradients.copy_from_host(exchanged)?)
            }
            None if self.gradients.is_on_device() => Ok(()),
            None => Ok(group.all_reduce(&mut self.gradients, all)?),
        }
    }

    /// What must be equal on every rank, and is saved: weights and moments.
    pub(crate) fn persistent(&self) -> [(&'static str, &Buffer); 3] {
        [
            ("", &self.parameters),
            (FIRST_MOMENT, &self.first_moment),
            (SECOND_MOMENT, &self.second_moment),
        ]
    }

    /// The same, to be filled.
    pub(crate) fn persistent_mut(&mut self) -> [(&'static str, &mut Buffer); 3] {
        [
            ("", &mut self.parameters),
            (FIRST_MOMENT, &mut self.first_moment),
            (SECOND_MOMENT, &mut self.second_moment),
        ]
    }
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
