//! Forward and backward of one micro-batch, segment by segment.

use candle_core::Tensor;
use cordee_config::Recompute;
use cordee_data::Batch;
use cordee_memory::{View, ViewMut};
use cordee_model::{Context, Gradients, Keep, Model, Reached, Saved, Weights};
use cordee_ops::{Sequences, head::Losses};

use crate::{TrainError, buckets::Buckets};

/// Runs the segments of a model in order, and backwards.
pub(crate) struct Engine<'m> {
    model: &'m Model,
    recompute: Recompute,
    reached: Reached,
}

impl<'m> Engine<'m> {
    pub(crate) fn new(model: &'m Model, recompute: Recompute) -> Self {
        Self {
            model,
            recompute,
            reached: Reached::new(model.parameters().len()),
        }
    }

    /// The first parameter that no backward has reached since the start.
    pub(crate) fn never_reached(&self) -> Option<usize> {
        self.reached.never()
    }

    /// Begins a step: what gradients hold is of the one before.
    pub(crate) fn begin_step(&mut self) {
        self.reached.begin_step();
    }

    /// Adds the micro-batch's summed loss to `nll` and its gradient to those of the step in
    /// `gradients`, of which `ended` is told after each segment's backward; returns the losses.
    pub(crate) fn forward_backward(
        &mut self,
        batch: &Batch,
        parameters: &[View<'_>],
        gradients: &mut Buckets,
        nll: &mut ViewMut<'_>,
        ended: &mut dyn FnMut(&mut Buckets, usize) -> Result<(), TrainError>,
    ) -> Result<Losses, TrainError> {
        let tokens = Split::of(batch);
        let context = tokens.context(batch);
        let model = self.model;
        let weights = |segment| Weights::new(parameters, model.ids(segment));

        let mut kept = Vec::with_capacity(model.blocks.len());
        let mut x = model.embedding.forward(&context, weights(0))?;
        for (index, block) in model.blocks.iter().enumerate() {
            let input = x.clone();
            let (y, saved) = block.forward(&context, weights(index + 1), x, self.keep())?;
            kept.push(match self.recompute {
                Recompute::None | Recompute::Light => Kept::Saved(saved),
                Recompute::Full => Kept::Input(input),
            });
            x = y;
        }

        let head = model.segments() - 1;
        let mut lent = gradients.lend(model.ids(head))?;
        let mut lent = Gradients::new(&mut lent, model.ids(head), &mut self.reached);
        let (losses, mut dx) =
            model
                .head
                .loss_and_gradient(&context, weights(head), &x, &mut lent, nll)?;
        lent.finish()?;
        drop(x);
        ended(gradients, head)?;
        for (index, block) in model.blocks.iter().enumerate().rev() {
            let segment = index + 1;
            let weights = weights(segment);
            let saved = match kept.pop().expect("one for each block") {
                Kept::Saved(saved) => saved,
                Kept::Input(x) => block.forward(&context, weights, x, Keep::All)?.1,
            };
            let mut lent = gradients.lend(model.ids(segment))?;
            let mut lent = Gradients::new(&mut lent, model.ids(segment), &mut self.reached);
            dx = block.backward(&context, weights, saved, dx, &mut lent)?;
            lent.finish()?;
            ended(gradients, segment)?;
        }
        let mut lent = gradients.lend(model.ids(0))?;
        let mut lent = Gradients::new(&mut lent, model.ids(0), &mut self.reached);
        model.embedding.backward(&context, &dx, &mut lent)?;
        lent.finish()?;
        ended(gradients, 0)?;
        Ok(losses)
    }

    /// What the first forward of a block keeps.
    fn keep(&self) -> Keep {
        match self.recompute {
            Recompute::None => Keep::All,
            // Of all, what is saved is dropped: the less, the better.
            Recompute::Light | Recompute::Full => Keep::Dear,
        }
    }

    /// The losses of a micro-batch alone; adds their sum to `nll`.
    pub(crate) fn loss(
        &self,
        batch: &Batch,
        parameters: &[View<'_>],
        nll: &mut ViewMut<'_>,
    ) -> Result<Losses, TrainError> {
        let tokens = Split::of(batch);
        let context = tokens.context(batch);
        let model = self.model;
        let weights = |segment| Weights::new(parameters, model.ids(segment));
        let x = model.forward(&context, parameters, Keep::Dear, drop)?;
        Ok(model
            .head
            .loss(&context, weights(model.segments() - 1), &x, nll)?)
    }
}

/// What a block leaves for its backward.
enum Kept {
    /// All that its forward saved.
    Saved(Saved),
    /// What its forward began from; it runs once more.
    Input(Tensor),
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
            sequences: match &batch.documents {
                Some(documents) => Sequences::Documents(documents),
                None => Sequences::Rows(batch.seq_len),
            },
            inputs: &self.inputs,
            targets: &self.targets,
            loss_mask: batch.loss_mask.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use cordee_comm::SharedMemoryGroup;
    use cordee_config::ModelConfig;
    use cordee_memory::{Buffer, DType};
    use cordee_model::{Embedding, Head, Init, ModelError, Parameter, Segment};
    use cordee_ops::Device;

    use super::*;

    /// A block that scales nothing and forgets the gradient of its one parameter.
    struct Forgetful([Parameter; 1]);

    impl Segment for Forgetful {
        fn parameters(&self) -> &[Parameter] {
            &self.0
        }

        fn forward(
            &self,
            _: &Context<'_>,
            _: Weights<'_>,
            x: Tensor,
            _: Keep,
        ) -> Result<(Tensor, Saved), ModelError> {
            Ok((x, Saved::new(())))
        }

        fn kept_per_token(&self, _: Keep) -> usize {
            0
        }

        fn backward(
            &self,
            _: &Context<'_>,
            _: Weights<'_>,
            _: Saved,
            dy: Tensor,
            _: &mut Gradients<'_, '_>,
        ) -> Result<Tensor, ModelError> {
            Ok(dy)
        }
    }

    #[test]
    fn a_parameter_that_no_backward_reaches_is_found() {
        let config = ModelConfig {
            tie_embeddings: true,
            init_std: 0.1,
            ..ModelConfig::llama(4, 1, 1, 4)
        };
        let forgotten = Parameter::new("scale", &[4], Init::Ones);
        let blocks: Vec<Box<dyn Segment>> = vec![Box::new(Forgetful([forgotten]))];
        let model = Model::from_segments(
            Embedding::new(&config, 8, 4),
            blocks,
            Head::new(&config, 8),
            4,
        );
        let layout = model.layout(DType::F32).unwrap();
        let mut parameters = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        model.initialise(&layout, &mut parameters, 1).unwrap();
        let mut group = SharedMemoryGroup::solo();
        let mut gradients = Buckets::new(&model, &layout, 1, &Device::HOST, &mut group).unwrap();
        let views = crate::state::parameter_views(&layout, &parameters).unwrap();
        let batch = Batch {
            rows: 1,
            seq_len: 2,
            tokens: vec![1, 2, 3],
            loss_mask: None,
            documents: None,
            sources: vec![0],
        };

        // What an earlier step left.
        for mut left in gradients.lend(&[0, 1, 2]).unwrap() {
            left.as_mut_slice::<f32>().unwrap().fill(f32::NAN);
        }
        let mut engine = Engine::new(&model, Recompute::None);
        let mut sum = [0.0];
        let mut nll = ViewMut::from_slice(&mut sum, &[1]).unwrap();
        let mut order = Vec::new();
        let mut ended = |gradients: &mut Buckets, segment| {
            order.push((segment, gradients.completed_by(segment)));
            Ok(())
        };
        engine
            .forward_backward(&batch, &views, &mut gradients, &mut nll, &mut ended)
            .unwrap();
        assert_eq!(order, [(2, Some(2)), (1, Some(1)), (0, Some(0))]);
        for now in gradients.lend(&[0, 1, 2]).unwrap() {
            let finite = now.as_slice::<f32>().unwrap().iter().all(|x| x.is_finite());
            assert!(finite, "of shape {:?}", now.shape());
        }
        let never = engine.never_reached();
        let never = never.map(|id| model.parameters()[id].name.as_str());
        assert_eq!(never, Some("scale"));
    }
}
