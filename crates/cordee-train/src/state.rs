//! What training changes: weights, gradients and moments, each one flat buffer.

use cordee_comm::ProcessGroup;
use cordee_memory::{Buffer, DType, Layout, View};
use cordee_model::Model;

use crate::TrainError;

/// The state of one rank.
#[derive(Debug)]
pub struct TrainState {
    /// Where each parameter lies, in every one of the buffers.
    pub layout: Layout,
    /// Weights.
    pub parameters: Buffer,
    /// Sums of gradients; in memory that the other ranks read.
    pub gradients: Buffer,
    /// First moments of the gradient.
    pub first_moment: Buffer,
    /// Second moments of the gradient.
    pub second_moment: Buffer,
    /// Optimizer steps done.
    pub step: u64,
}

impl TrainState {
    /// Allocates the state of `model`, all zero.
    pub fn new(model: &Model, group: &mut dyn ProcessGroup) -> Result<Self, TrainError> {
        let layout = model.layout(DType::F32)?;
        let zeroed = || Buffer::zeroed(layout.dtype(), layout.len());
        Ok(Self {
            parameters: zeroed()?,
            gradients: group.allocate(layout.dtype(), layout.len())?,
            first_moment: zeroed()?,
            second_moment: zeroed()?,
            step: 0,
            layout,
        })
    }

    /// A view of each parameter, in the model's order.
    pub fn parameter_views(&self) -> Result<Vec<View<'_>>, TrainError> {
        parameter_views(&self.layout, &self.parameters)
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
