//! One rank's part in an optimizer step, wherever its batches come from and whatever is told of it:
//! backwards, sums over ranks, the norm of the gradient, the update.

use cordee_comm::ProcessGroup;
use cordee_config::{OptimizerConfig, Recompute};
use cordee_data::{Batch, DataError};
use cordee_model::Model;
use cordee_ops::gradient_norm;

use crate::{
    Compute, TrainError, TrainState,
    engine::Engine,
    optimizer::{self, Update},
    progress::Stopwatch,
    sums::Sums,
};

/// What a rank needs to learn from batches.
pub(crate) struct Learner<'a> {
    pub(crate) model: &'a Model,
    pub(crate) group: &'a mut dyn ProcessGroup,
    pub(crate) engine: Engine<'a>,
    pub(crate) state: TrainState,
    pub(crate) sums: Sums,
    pub(crate) times: Times,
}

/// Where the time of a step went, apart from the model.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) collectives: Stopwatch,
    pub(crate) gradient_norm: Stopwatch,
    pub(crate) optimizer: Stopwatch,
}

/// What the ranks agree on after their backwards: numbers of the host, which wait for no arithmetic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepCounts {
    /// Tokens that the summed gradient is over.
    pub(crate) tokens_trained: f64,
    /// Whether any rank was asked to stop.
    pub(crate) stop: bool,
}

/// What a step came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepResult {
    /// The mean loss per trained token over all ranks, in nats.
    pub(crate) loss: f64,
    /// The norm of the mean gradient.
    pub(crate) grad_norm: f64,
}

impl<'a> Learner<'a> {
    /// A rank of `group` with the memory that training `model` takes, all zero.
    pub(crate) fn new(
        model: &'a Model,
        compute: &Compute,
        recompute: Recompute,
        group: &'a mut dyn ProcessGroup,
    ) -> Result<Self, TrainError> {
        let state = TrainState::new(model, compute, group)?;
        Ok(Self {
            model,
            group,
            engine: Engine::new(model, recompute),
            state,
            sums: Sums::new(&compute.device)?,
            times: Times::default(),
        })
    }

    /// Forward and backward of this rank's micro-batches, then the sums over ranks: after this the
    /// gradients are those of the whole step's summed loss, on every rank.
    pub(crate) fn accumulate(
        &mut self,
        batches: impl Iterator<Item = Result<Batch, DataError>>,
        stop: bool,
    ) -> Result<StepCounts, TrainError> {
        let mut counts = [0.0, f64::from(u8::from(stop))];
        let state = &mut self.state;
        // Not after the update: what a step did not like can be looked at until the next begins.
        state.gradients.fill_zero()?;
        self.sums.clear()?;
        let computed = state.rounded.as_ref().unwrap_or(&state.parameters);
        let parameters = crate::state::parameter_views(&state.layout, computed)?;
        let mut gradients = state.gradients.views_mut(state.layout.slots())?;
        let mut nll = self.sums.views()?.nll;
        for batch in batches {
            let losses =
                self.engine
                    .forward_backward(&batch?, &parameters, &mut gradients, &mut nll)?;
            counts[0] += losses.trained as f64;
        }
        drop((parameters, gradients));
        let group = &mut *self.group;
        self.times.collectives.time(|| {
            state.reduce_gradients(group)?;
            group.sum_scalars(&mut counts).map_err(TrainError::from)
        })?;
        Ok(StepCounts {
            tokens_trained: counts[0],
            stop: counts[1] > 0.0,
        })
    }

    /// Changes the weights by the gradients, unless one of these is not finite: then nothing changes,
    /// and the norm tells. What the step came to is read once, when all of its work is given out.
    pub(crate) fn update(
        &mut self,
        config: &OptimizerConfig,
        update: &Update,
    ) -> Result<StepResult, TrainError> {
        let (state, tokens) = (&mut self.state, update.tokens_trained);
        let len = state.layout.len();
        let sums = &mut self.sums;
        self.times.gradient_norm.time(|| {
            let mut sums = sums.views()?;
            let whole = state.gradients.view(0..len, &[len])?;
            gradient_norm::sum_of_squares(whole, &mut sums.squares)?;
            let (squares, max_norm) = (sums.squares.as_view(), config.clip_grad_norm);
            gradient_norm::scale(squares, tokens, max_norm, &mut sums.scale)?;
            Ok::<_, TrainError>(())
        })?;
        let parameters = self.model.parameters();
        let [nll, squares] = self.times.optimizer.time(|| {
            let views = sums.views()?;
            let scale = views.scale.as_view();
            optimizer::apply(config, parameters, state, update, scale)?;
            state.step = update.step;
            sums.read()
        })?;
        let mut nll = [nll];
        self.times
            .collectives
            .time(|| self.group.sum_scalars(&mut nll))?;
        Ok(StepResult {
            loss: nll[0] / tokens,
            grad_norm: squares.sqrt() / tokens,
        })
    }
}
