//! One rank's part in an optimizer step, wherever its batches come from and whatever is told of it:
//! backwards, sums over ranks, the norm of the gradient, the update.

use cordee_comm::ProcessGroup;
use cordee_config::{OptimizerConfig, ParallelConfig, Recompute};
use cordee_data::{Batch, DataError};
use cordee_model::Model;
use cordee_ops::gradient_norm;

use crate::{
    Compute, TrainError, TrainState,
    buckets::Buckets,
    engine::Engine,
    optimizer::{self, Update},
    progress::Stopwatch,
    reduction::{Ended, Reduction, When},
    sums::Sums,
};

/// What a rank needs to learn from batches.
pub(crate) struct Learner<'a> {
    pub(crate) model: &'a Model,
    pub(crate) group: &'a mut dyn ProcessGroup,
    pub(crate) engine: Engine<'a>,
    pub(crate) state: TrainState,
    pub(crate) reduction: Reduction,
    pub(crate) sums: Sums,
    pub(crate) times: Times,
}

/// Where the time of a step went, apart from the model.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// Of collectives only what nothing else was done beside.
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
        parallel: &ParallelConfig,
        group: &'a mut dyn ProcessGroup,
    ) -> Result<Self, TrainError> {
        let state = TrainState::new(model, compute, parallel, group)?;
        let when = if parallel.overlap {
            When::During
        } else {
            When::After
        };
        let parts = state.gradients.len() * group.world_size();
        Ok(Self {
            model,
            group,
            engine: Engine::new(model, recompute),
            reduction: Reduction {
                when,
                scatter: state.sharded,
            },
            sums: Sums::new(&compute.device, parts)?,
            state,
            times: Times::default(),
        })
    }

    /// Forward and backward of this rank's micro-batches, and the sums over ranks: after this the
    /// gradients are those of the whole step's summed loss, on every rank or each rank's own.
    pub(crate) fn accumulate(
        &mut self,
        batches: impl ExactSizeIterator<Item = Result<Batch, DataError>>,
        stop: bool,
    ) -> Result<StepCounts, TrainError> {
        let mut counts = [0.0, f64::from(u8::from(stop))];
        let state = &mut self.state;
        self.engine.begin_step();
        self.sums.clear()?;
        let computed = state.rounded.as_ref().unwrap_or(&state.parameters);
        let parameters = crate::state::parameter_views(&state.layout, computed)?;
        let mut nll = self.sums.views()?.nll;
        let (engine, gradients) = (&mut self.engine, &mut state.gradients);
        let last = batches.len();
        for (index, batch) in batches.enumerate() {
            let batch = batch?;
            let mut backward = |gradients: &mut Buckets, ended: &mut Ended<'_>| {
                engine.forward_backward(&batch, &parameters, gradients, &mut nll, ended)
            };
            let losses = if index + 1 < last {
                backward(gradients, &mut |_, _| Ok(()))?
            } else {
                let (losses, waited) =
                    (self.reduction).around(gradients, &mut *self.group, backward)?;
                self.times.collectives.add(waited);
                losses
            };
            counts[0] += losses.trained as f64;
        }
        drop(parameters);
        let group = &mut *self.group;
        self.times
            .collectives
            .time(|| group.sum_scalars(&mut counts))?;
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
        let (state, group, sums) = (&mut self.state, &mut *self.group, &mut self.sums);
        let (rank, world) = (group.rank(), group.world_size());
        let (tokens, times) = (update.tokens_trained, &mut self.times);
        times.gradient_norm.time(|| {
            for (bucket, own) in state.own().iter().enumerate() {
                let values = state.gradients.view(bucket, own.clone())?;
                sums.square_part(bucket * world + rank, values)?;
            }
            Ok::<_, TrainError>(())
        })?;
        times.collectives.time(|| sums.exchange_parts(group))?;
        let parameters = self.model.parameters();
        times.optimizer.time(|| {
            let mut views = sums.views()?;
            let (squares, max_norm) = (views.squares.as_view(), config.clip_grad_norm);
            let (total, scale) = (&mut views.total, &mut views.scale);
            gradient_norm::scale(squares, tokens, max_norm, total, scale)?;
            optimizer::apply(config, parameters, state, update, views.scale.as_view())
        })?;
        state.step = update.step;
        times.collectives.time(|| state.gather(group))?;
        // All that waits for a device waits here.
        let [nll, squares] = times.optimizer.time(|| {
            group.wait()?;
            sums.read()
        })?;
        let mut nll = [nll];
        times.collectives.time(|| group.sum_scalars(&mut nll))?;
        Ok(StepResult {
            loss: nll[0] / tokens,
            grad_norm: squares.sqrt() / tokens,
        })
    }
}
