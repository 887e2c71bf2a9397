//! One optimizer step: backwards, sums over ranks, the update, and what is told of it.

use std::time::Instant;

use cordee_metrics::{StepRecord, unix_time};
use cordee_ops::gradient_norm;
use cordee_protocol::{Phase, StepProgress, WorkerMessage};

use super::{Trainer, is_due};
use crate::{
    TrainError,
    learner::{Learner, StepCounts, StepResult},
    optimizer::{Update, first_parameter, is_not_finite, is_zero, squares_of_gradients},
    progress::resident_bytes,
    schedule::learning_rate,
};

impl Trainer<'_> {
    /// One optimizer step. Returns whether any rank was asked to stop.
    pub(super) fn step(&mut self) -> Result<bool, TrainError> {
        let started = Instant::now();
        let step = self.learner.state.step + 1;
        let phase = if step > self.run.furthest_step {
            Phase::Training
        } else {
            Phase::Recomputing
        };
        self.run.status.enter(phase, step);
        let counts = self.accumulate()?;
        if step == self.first_step + 1
            && let Some(id) = self.learner.engine.never_reached()
        {
            let parameter = self.learner.model.parameters()[id].name.clone();
            return Err(TrainError::MissingGradient {
                parameter,
                why: "no backward reached it",
            });
        }
        if counts.tokens_trained == 0.0 {
            let samples = self.run.plan.config.train.global_batch_size;
            return Err(TrainError::NothingTrained { step, samples });
        }
        let config = &self.run.plan.config;
        let update = Update {
            step,
            lr: learning_rate(config, step),
            tokens_trained: counts.tokens_trained,
            seed: config.train.seed,
        };
        let result = self.learner.update(&config.optimizer, &update)?;
        self.check(step, &result)?;
        self.report(&update, &result, started);
        Ok(counts.stop)
    }

    /// Forward and backward of every micro-batch, summed over ranks.
    fn accumulate(&mut self) -> Result<StepCounts, TrainError> {
        let (batches, waiting) = (&mut self.batches, &mut self.waiting_for_data);
        let status = self.run.status;
        let micro_batches = (0..self.run.plan.accumulation_steps).map(|_| {
            status.progress();
            waiting
                .time(|| batches.next())
                .expect("a batch for every step left")
        });
        let stop = self.run.stop_requested();
        self.learner.accumulate(micro_batches, stop)
    }

    /// Stops the run after a step that cannot be gone on from. A gradient that is not finite has
    /// changed no weight, since the update refuses it. A loss that is not finite and whose gradient
    /// is has changed them, and the first step's missing gradient, too: no checkpoint is written
    /// after an error.
    fn check(&mut self, step: u64, result: &StepResult) -> Result<(), TrainError> {
        let &StepResult { loss, grad_norm } = result;
        let diverged = !loss.is_finite() || !grad_norm.is_finite();
        // Both are the same on every rank.
        if !diverged && step != self.first_step + 1 {
            return Ok(());
        }
        let Learner {
            state, sums, group, ..
        } = &mut self.learner;
        let squares = squares_of_gradients(state, sums, *group)?;
        if diverged {
            let parameter = first_parameter(&state.layout, &squares, is_not_finite);
            let first = parameter.map_or_else(String::new, |name| {
                format!("; the first gradient that is not finite is that of `{name}`")
            });
            let what = format!("loss {loss}, gradient norm {grad_norm}{first}");
            return Err(TrainError::Diverged { step, what });
        }
        match first_parameter(&state.layout, &squares, is_zero) {
            None => Ok(()),
            Some(parameter) => Err(TrainError::MissingGradient {
                parameter,
                why: "it is zero everywhere",
            }),
        }
    }

    fn report(&mut self, update: &Update, result: &StepResult, started: Instant) {
        let &StepResult { loss, grad_norm } = result;
        let Some(recorder) = &self.recorder else {
            return;
        };
        let plan = self.run.plan;
        let step_s = started.elapsed().as_secs_f64();
        let tokens_per_s = plan.tokens_per_step as f64 / step_s;
        let comm_seconds = self.learner.group.seconds();
        let comm_s = comm_seconds - std::mem::replace(&mut self.comm_seconds, comm_seconds);
        let (data_s, comm_exposed_s) = (
            self.waiting_for_data.take(),
            self.learner.times.collectives.take(),
        );
        // Nothing on the host waits for what GPUs exchange, so nobody counts it.
        let (comm_s, comm_exposed_s) =
            if plan.world_size > 1 && self.learner.state.gradients.are_on_device() {
                (f64::NAN, f64::NAN)
            } else {
                (comm_s, comm_exposed_s)
            };
        let memory_bytes = resident_bytes();
        let samples = update.step * plan.config.train.global_batch_size as u64;
        let train_tokens: u64 = self
            .run
            .corpus
            .sources()
            .iter()
            .map(|source| source.train.tokens)
            .sum();
        let tokens = update.step * plan.tokens_per_step;
        recorder.step(StepRecord {
            step: update.step,
            time: unix_time(),
            loss,
            grad_norm,
            lr: update.lr,
            tokens,
            tokens_trained: update.tokens_trained as u64,
            samples,
            epoch: tokens as f64 / train_tokens as f64,
            clipped: gradient_norm::clip_factor(plan.config.optimizer.clip_grad_norm, grad_norm)
                < 1.0,
            step_s,
            data_s,
            comm_s,
            comm_exposed_s,
            tokens_per_s,
            host_rss_bytes: memory_bytes,
        });
        (self.tell)(WorkerMessage::Step(StepProgress {
            step: update.step,
            steps: self.run.last_step,
            loss,
            grad_norm,
            lr: update.lr,
            tokens_per_s,
            ranks: plan.world_size,
            step_s,
            data_s,
            comm_s,
            comm_exposed_s,
            memory_bytes,
            due: is_due(update.step, plan.config.log.every.0),
        }));
    }
}
