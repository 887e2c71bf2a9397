//! What was learned: loss on held-out text, and a sample.

use std::ops::ControlFlow;

use cordee_metrics::{Event, EventKind};
use cordee_model::Sampling;
use cordee_protocol::{Evaluation, Phase, WorkerMessage};

use super::Trainer;
use crate::{TrainError, evaluation::Exam, learner::Learner, sample::continue_text};

impl Trainer<'_> {
    /// The loss on held-out text; `None` if any rank was asked to stop before it was known.
    pub(super) fn evaluate(&mut self) -> Result<Option<Evaluation>, TrainError> {
        let (run, step) = (self.run, self.learner.state.step);
        run.status.enter(Phase::Evaluating, step);
        let stop = || {
            run.status.progress();
            run.stop_requested()
        };
        let Learner {
            state,
            engine,
            group,
            ..
        } = &mut self.learner;
        let exam = Exam {
            device: &run.compute.device,
            validation: &self.validation,
            rows: run.plan.micro_batch_size,
            stop: &stop,
        };
        let Some(evaluation) = exam.evaluate(engine, state, &mut **group)? else {
            return Ok(None);
        };
        if let Some(recorder) = &self.recorder {
            recorder.event(evaluation_event(&evaluation));
            (self.tell)(WorkerMessage::Evaluation(evaluation.clone()));
        }
        if !evaluation.loss.is_finite() {
            let what = format!("validation loss {}", evaluation.loss);
            return Err(TrainError::Diverged { step, what });
        }
        Ok(Some(evaluation))
    }

    /// The last validation, and a sample of what was learned; `None` if any rank was asked to stop
    /// before it was known.
    pub(super) fn conclude(&mut self) -> Result<Option<Evaluation>, TrainError> {
        let Some(evaluation) = self.evaluate()? else {
            return Ok(None);
        };
        self.run
            .status
            .enter(Phase::Concluding, self.learner.state.step);
        let eval = &self.run.plan.config.eval;
        if self.learner.group.rank() == 0 && !eval.sample_prompt.is_empty() {
            let tokenizer = self.run.corpus.tokenizer()?;
            let parameters = self.learner.state.parameter_views()?;
            let sampling = Sampling {
                max_tokens: eval.sample_tokens,
                temperature: 0.8,
                top_p: 0.95,
                seed: self.run.plan.config.train.seed,
            };
            let mut text = String::new();
            let prompt = &eval.sample_prompt;
            let run = self.run;
            continue_text(
                self.learner.model,
                &parameters,
                &tokenizer,
                prompt,
                sampling,
                |new| {
                    run.status.progress();
                    text.push_str(new);
                    if run.stop_requested() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                },
            )?;
            if let Some(recorder) = &self.recorder {
                let (prompt, text) = (eval.sample_prompt.clone(), text.clone());
                recorder.event(Event::now(
                    self.learner.state.step,
                    EventKind::Sample { prompt, text },
                ));
            }
            (self.tell)(WorkerMessage::Sample {
                prompt: eval.sample_prompt.clone(),
                text,
            });
        }
        Ok(Some(evaluation))
    }
}

/// The event of an evaluation. What is shown and what is recorded are two contracts that change
/// apart, so each has a type of its own.
fn evaluation_event(evaluation: &Evaluation) -> Event {
    let sources = evaluation
        .sources
        .iter()
        .map(|source| cordee_metrics::SourceEvaluation {
            name: source.name.clone(),
            loss: source.loss,
            bits_per_byte: source.bits_per_byte,
            unigram_bits_per_byte: source.unigram_bits_per_byte,
        });
    let (loss, seconds) = (evaluation.loss, evaluation.seconds);
    Event::now(
        evaluation.step,
        EventKind::Evaluation {
            loss,
            seconds,
            sources: sources.collect(),
        },
    )
}
