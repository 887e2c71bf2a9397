//! When state goes to disk, and what a disk that refuses costs.

use std::time::Instant;

use cordee_metrics::{Event, EventKind};
use cordee_protocol::{Phase, WorkerMessage};

use super::Trainer;
use crate::{
    TrainError,
    checkpoints::{RunState, Saved},
    learner::Learner,
    optimizer::{first_parameter, is_not_finite, squares_of_weights},
};

impl Trainer<'_> {
    /// Saves a checkpoint. A disk that refuses costs a warning and not the run, unless the
    /// checkpoint is the `last` one.
    pub(super) fn save(&mut self, last: bool) -> Result<(), TrainError> {
        let started = Instant::now();
        let step = self.learner.state.step;
        self.run.status.enter(Phase::Saving, step);
        let Learner {
            state, sums, group, ..
        } = &mut self.learner;
        let squares = squares_of_weights(state, sums, *group)?;
        if let Some(name) = first_parameter(&state.layout, &squares, is_not_finite) {
            return Err(TrainError::Diverged {
                step,
                what: format!("weights of `{name}` are not finite"),
            });
        }
        // A resume cuts lines past its checkpoint and cannot bring back lines before it, so that a
        // checkpoint waits for its lines; the last one does not, since there is no later one.
        let unwritten = self
            .recorder
            .as_ref()
            .and_then(|recorder| recorder.flush().err());
        let obstacle = unwritten
            .filter(|_| !last)
            .map(|error| format!("metrics cannot be written: {error}"));
        let run = RunState {
            step,
            config_fingerprint: self.run.plan.fingerprint.clone(),
            corpus_fingerprint: self.run.corpus.fingerprint().to_owned(),
            world_size: self.run.plan.world_size,
            evaluation_due: self.evaluation_due,
        };
        match self.checkpoints.save(
            &self.learner.state,
            &run,
            obstacle,
            &mut *self.learner.group,
        )? {
            Saved::Committed {
                path,
                bytes,
                warning,
            } => {
                let path = path.display().to_string();
                self.newest_checkpoint = Some(path.clone());
                if let Some(recorder) = &self.recorder {
                    let seconds = started.elapsed().as_secs_f64();
                    let saved = EventKind::CheckpointSaved {
                        path: path.clone(),
                        bytes,
                        seconds,
                    };
                    recorder.event(Event::now(step, saved));
                    (self.tell)(WorkerMessage::Checkpoint {
                        step,
                        path,
                        bytes,
                        seconds,
                    });
                }
                if let Some(warning) = warning {
                    self.warn(warning);
                }
            }
            Saved::Abandoned { why } => {
                if let Some(recorder) = &self.recorder {
                    recorder.event(Event::now(
                        step,
                        EventKind::CheckpointFailed {
                            reason: why.clone(),
                        },
                    ));
                }
                if last {
                    return Err(TrainError::NotSaved { step, why });
                }
                if self.learner.group.rank() == 0 {
                    self.warn(format!(
                        "the checkpoint of step {step} was given up, training goes on: {why}"
                    ));
                }
            }
        }
        Ok(())
    }
}
