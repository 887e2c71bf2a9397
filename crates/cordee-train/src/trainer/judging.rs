//! What was learned: loss on held-out text, and a sample.

use cordee_metrics::{Event, EventKind};
use cordee_model::Sampling;
use cordee_protocol::{Evaluation, WorkerMessage};

use super::Trainer;
use crate::{TrainError, evaluation::evaluate, learner::Learner, sample::continue_text};

impl Trainer<'_> {
    pub(super) fn evaluate(&mut self) -> Result<Evaluation, TrainError> {
        let Learner {
            state,
            engine,
            group,
            ..
        } = &mut self.learner;
        let evaluation = evaluate(
            engine,
            state,
            &self.run.compute.device,
            &self.validation,
            self.run.plan.micro_batch_size,
            &mut **group,
        )?;
        if let Some(recorder) = &self.recorder {
            recorder.event(evaluation_event(&evaluation));
            (self.tell)(WorkerMessage::Evaluation(evaluation.clone()));
        }
        if !evaluation.loss.is_finite() {
            let what = format!("validation loss {}", evaluation.loss);
            return Err(TrainError::Diverged {
                step: self.learner.state.step,
                what,
            });
        }
        Ok(evaluation)
    }

    /// The last validation, and a sample of what was learned.
    pub(super) fn conclude(&mut self) -> Result<Evaluation, TrainError> {
        let evaluation = self.evaluate()?;
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
            continue_text(
                self.learner.model,
                &parameters,
                &tokenizer,
                prompt,
                sampling,
                |new| text.push_str(new),
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
        Ok(evaluation)
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
