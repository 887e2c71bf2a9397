//! Forward and backward of one micro-batch, segment by segment.

use cordee_data::Batch;
use cordee_memory::{View, ViewMut};
use cordee_model::{Context, Gradients, Model, Weights};
use cordee_ops::head::LossSum;

use crate::TrainError;

/// Runs the segments of a model in order, and backwards.
pub(crate) struct Engine<'m> {
    model: &'m Model,
    /// Which parameters were handed a gradient since the start.
    received: Vec<bool>,
}

impl<'m> Engine<'m> {
    pub(crate) fn new(model: &'m Model) -> Self {
        Self {
            model,
            received: vec![false; model.parameters().len()],
        }
    }

    /// The first parameter that no backward has touched.
    pub(crate) fn untouched(&self) -> Option<usize> {
        self.received.iter().position(|received| !received)
    }

    /// Adds the gradient of the micro-batch's summed loss to `gradients`; returns the loss.
    pub(crate) fn forward_backward(
        &mut self,
        batch: &Batch,
        parameters: &[View<'_>],
        gradients: &mut [ViewMut<'_>],
    ) -> Result<LossSum, TrainError> {
        let tokens = Split::of(batch);
        let context = tokens.context(batch);
        let model = self.model;
        let weights = |segment| Weights::new(parameters, model.ids(segment));

        let mut x = model.embedding.forward(&context, weights(0))?;
        let mut kept = Vec::with_capacity(model.blocks.len());
        for (index, block) in model.blocks.iter().enumerate() {
            let (y, saved) = block.forward(&context, weights(index + 1), x)?;
            kept.push(saved);
            x = y;
        }

        let head = model.segments() - 1;
        let mut lent = Gradients::new(gradients, model.ids(head), &mut self.received);
        let (loss, mut dx) =
            model
                .head
                .loss_and_gradient(&context, weights(head), &x, &mut lent)?;
        drop(x);
        for (index, block) in model.blocks.iter().enumerate().rev() {
            let saved = kept.pop().expect("one for each block");
            let mut lent = Gradients::new(gradients, model.ids(index + 1), &mut self.received);
            dx = block.backward(&context, weights(index + 1), saved, dx, &mut lent)?;
        }
        let mut lent = Gradients::new(gradients, model.ids(0), &mut self.received);
        model.embedding.backward(&context, &dx, &mut lent)?;
        Ok(loss)
    }

    /// The loss of a micro-batch alone.
    pub(crate) fn loss(
        &self,
        batch: &Batch,
        parameters: &[View<'_>],
    ) -> Result<LossSum, TrainError> {
        let tokens = Split::of(batch);
        let context = tokens.context(batch);
        let model = self.model;
        let weights = |segment| Weights::new(parameters, model.ids(segment));
        let mut x = model.embedding.forward(&context, weights(0))?;
        for (index, block) in model.blocks.iter().enumerate() {
            x = block.forward(&context, weights(index + 1), x)?.0;
        }
        Ok(model
            .head
            .loss(&context, weights(model.segments() - 1), &x)?)
    }
}

/// A batch's rows of `seq_len + 1` tokens as inputs and targets.
struct Split {
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Split {
    fn of(batch: &Batch) -> Self {
        let rows = || batch.tokens.chunks_exact(batch.seq_len + 1);
        Self {
            inputs: rows()
                .flat_map(|row| &row[..batch.seq_len])
                .copied()
                .collect(),
            targets: rows().flat_map(|row| &row[1..]).copied().collect(),
        }
    }

    fn context<'a>(&'a self, batch: &'a Batch) -> Context<'a> {
        Context {
            rows: batch.rows,
            seq_len: batch.seq_len,
            inputs: &self.inputs,
            targets: &self.targets,
            loss_mask: batch.loss_mask.as_deref(),
        }
    }
}
