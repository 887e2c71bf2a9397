//! One rank's part in an optimizer step, wherever its batches come from and whatever is told of it:
//! backwards, sums over ranks, the norm of the gradient, the update.

use cordee_comm::ProcessGroup;
use cordee_config::{OptimizerConfig, Recompute};
use cordee_data::{Batch, DataError};
use cordee_model::Model;

use crate::{
    TrainError, TrainState,
    engine::Engine,
    optimizer::{self, Update},
    progress::Stopwatch,
};

/// What a rank needs to learn from batches.
pub(crate) struct Learner<'a> {
    pub(crate) model: &'a Model,
    pub(crate) group: &'a mut dyn ProcessGroup,
    pub(crate) engine: Engine<'a>,
    pub(crate) state: TrainState,
    pub(crate) times: Times,
}

/// Where the time of a step went, apart from the model.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) collectives: Stopwatch,
    pub(crate) gradient_norm: Stopwatch,
    pub(crate) optimizer: Stopwatch,
}

/// What the ranks agree on after their backwards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSums {
    /// Sum of the negative log-likelihoods of the trained tokens, in nats.
    nll: f64,
    /// Tokens that the summed gradient is over.
    pub(crate) tokens_trained: f64,
    /// Whether any rank was asked to stop.
    pub(crate) stop: bool,
}

impl StepSums {
    /// The mean loss per trained token, in nats.
    pub(crate) fn loss(&self) -> f64 {
        self.nll / self.tokens_trained
    }
}

impl<'a> Learner<'a> {
    /// A rank of `group` with the memory that training `model` takes, all zero.
    pub(crate) fn new(
        model: &'a Model,
        recompute: Recompute,
        group: &'a mut dyn ProcessGroup,
    ) -> Result<Self, TrainError> {
        let state = TrainState::new(model, group)?;
        Ok(Self {
            model,
            group,
            engine: Engine::new(model, recompute),
            state,
            times: Times::default(),
        })
    }

    /// Forward and backward of this rank's micro-batches, then the sums over ranks: after this the
    /// gradients are those of the whole step's summed loss, on every rank.
    pub(crate) fn accumulate(
        &mut self,
        batches: impl Iterator<Item = Result<Batch, DataError>>,
        stop: bool,
    ) -> Result<StepSums, TrainError> {
        let mut sums = [0.0, 0.0, f64::from(u8::from(stop))];
        let state = &mut self.state;
        let parameters = crate::state::parameter_views(&state.layout, &state.parameters)?;
        let mut gradients = state.gradients.views_mut(state.layout.slots())?;
        for batch in batches {
            let loss = self
                .engine
                .forward_backward(&batch?, &parameters, &mut gradients)?;
            sums[0] += loss.nll_sum;
            sums[1] += loss.trained as f64;
        }
        drop((parameters, gradients));
        let (group, len) = (&mut *self.group, state.layout.len());
        self.times.collectives.time(|| {
            group.all_reduce(&mut state.gradients, 0..len)?;
            group.sum_scalars(&mut sums)
        })?;
        Ok(StepSums {
            nll: sums[0],
            tokens_trained: sums[1],
            stop: sums[2] > 0.0,
        })
    }

    /// The norm of the mean gradient.
    pub(crate) fn gradient_norm(&mut self, sums: &StepSums) -> Result<f64, TrainError> {
        let state = &self.state;
        self.times
            .gradient_norm
            .time(|| optimizer::gradient_norm(state, sums.tokens_trained))
    }

    /// Changes the weights by the gradients, and sets these to zero for the next step.
    pub(crate) fn update(
        &mut self,
        config: &OptimizerConfig,
        update: &Update,
        grad_norm: f64,
    ) -> Result<(), TrainError> {
        let (state, parameters) = (&mut self.state, self.model.parameters());
        self.times.optimizer.time(|| {
            optimizer::apply(config, parameters, state, update, grad_norm)?;
            state.gradients.fill_zero()?;
            state.step = update.step;
            Ok(())
        })
    }
}
