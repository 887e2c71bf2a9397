//! The run of one rank, from its first step to its last.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use cordee_comm::ProcessGroup;
use cordee_config::Plan;
use cordee_data::{BatchShape, Corpus, Loader, Prefetch, Validation, samples_for};
use cordee_metrics::{Event, EventKind, Recorder, StepRecord, unix_time};
use cordee_model::{Model, Sampling};
use cordee_protocol::{Evaluation, StepProgress, Summary, WorkerMessage};

use crate::{
    TrainError, TrainState,
    banner::banner,
    checkpoints::{Checkpoints, RunState, Saved, check_replicas, restore},
    engine::Engine,
    evaluation::evaluate,
    optimizer::{self, Update, first_parameter, is_not_finite, is_zero},
    progress::{Stopwatch, resident_bytes},
    sample::continue_text,
    schedule::learning_rate,
};

/// What a rank is told to do.
pub struct Run<'a> {
    /// The resolved config.
    pub plan: &'a Plan,
    /// The tokenised data.
    pub corpus: &'a Corpus,
    /// Where the run keeps everything it writes.
    pub run_dir: &'a Path,
    /// The checkpoint to go on from.
    pub resume: Option<&'a Path>,
    /// Step after which to end, at most the config's.
    pub last_step: u64,
    /// What was said before there were ranks; recorded, not told again.
    pub warnings: &'a [String],
    /// Set from outside to stop at the next step boundary.
    pub stop: &'a AtomicBool,
}

/// Trains from the checkpoint or from fresh weights to the last step, or until asked to stop.
/// Every rank of `group` calls this with the same `run`; what there is to tell goes to `tell`.
pub fn train(
    run: &Run<'_>,
    group: &mut dyn ProcessGroup,
    tell: &mut dyn FnMut(WorkerMessage),
) -> Result<Summary, TrainError> {
    let started = Instant::now();
    let config = &run.plan.config;
    let model = Model::new(&config.model, run.corpus.vocab_size(), config.data.seq_len)?;
    let mut trainer = Trainer::prepare(run, &model, group, tell)?;
    let summary = trainer.run(started)?;
    if let Some(recorder) = trainer.recorder.take() {
        let dropped = recorder.finish()?;
        if dropped > 0 {
            let text = format!(
                "{dropped} records are not in the TensorBoard files, which could not keep up"
            );
            (trainer.tell)(WorkerMessage::Warning { rank: 0, text });
        }
        (trainer.tell)(WorkerMessage::Summary(summary.clone()));
    }
    Ok(summary)
}

/// Everything a rank holds while it trains.
struct Trainer<'a> {
    run: &'a Run<'a>,
    model: &'a Model,
    group: &'a mut dyn ProcessGroup,
    tell: &'a mut dyn FnMut(WorkerMessage),
    engine: Engine<'a>,
    state: TrainState,
    batches: Prefetch,
    validation: Validation,
    checkpoints: Checkpoints,
    /// On rank 0 alone.
    recorder: Option<Recorder>,
    first_step: u64,
    newest_checkpoint: Option<String>,
    waiting_for_data: Stopwatch,
    in_collectives: Stopwatch,
}

/// What the ranks agree on after their backwards.
struct StepSums {
    nll: f64,
    tokens_trained: f64,
    stop: bool,
}

impl<'a> Trainer<'a> {
    fn prepare(
        run: &'a Run<'a>,
        model: &'a Model,
        group: &'a mut dyn ProcessGroup,
        tell: &'a mut dyn FnMut(WorkerMessage),
    ) -> Result<Self, TrainError> {
        let config = &run.plan.config;
        let mut state = TrainState::new(model, group)?;
        match run.resume {
            None => model.initialise(&state.layout, &mut state.parameters, config.train.seed)?,
            Some(path) => check_origin(path, &restore(path, &mut state)?, run)?,
        }
        check_replicas(&state, group)?;
        let first_step = state.step;
        let checkpoints = Checkpoints::new(run.run_dir, &state, run.plan)?;
        let recorder = if group.rank() == 0 {
            checkpoints.check_room(checkpoints_to_come(run, first_step))?;
            tell(WorkerMessage::Banner(banner(run, model, first_step)));
            let resume_at = run.resume.map(|_| first_step);
            let recorder = Recorder::open(run.run_dir, resume_at, config.log.tensorboard)?;
            let (ranks, steps) = (run.plan.world_size, run.last_step);
            let begun = match run.resume {
                None => EventKind::RunStarted { ranks, steps },
                Some(path) => EventKind::Resumed {
                    path: path.display().to_string(),
                    ranks,
                    steps,
                },
            };
            recorder.event(Event::now(first_step, begun));
            for text in run.warnings {
                recorder.event(Event::now(
                    first_step,
                    EventKind::Warning {
                        rank: 0,
                        text: text.clone(),
                    },
                ));
            }
            Some(recorder)
        } else {
            None
        };
        Ok(Self {
            engine: Engine::new(model),
            batches: Self::batches(run, first_step, group.rank())?,
            validation: Validation::new(run.corpus, config.data.seq_len)?,
            checkpoints,
            newest_checkpoint: run.resume.map(|path| path.display().to_string()),
            waiting_for_data: Stopwatch::default(),
            in_collectives: Stopwatch::default(),
            run,
            model,
            group,
            tell,
            state,
            recorder,
            first_step,
        })
    }

    /// Trains, then tests what was learned unless it was asked to stop.
    fn run(&mut self, started: Instant) -> Result<Summary, TrainError> {
        let stopped = self.steps()?;
        let evaluation = if stopped {
            None
        } else {
            Some(self.conclude()?)
        };
        let summary = Summary {
            step: self.state.step,
            stopped,
            seconds: started.elapsed().as_secs_f64(),
            tokens: (self.state.step - self.first_step) * self.run.plan.tokens_per_step,
            evaluation,
            checkpoint: self.newest_checkpoint.take(),
        };
        if let Some(recorder) = &self.recorder {
            let Summary {
                seconds, tokens, ..
            } = summary;
            let ended = if stopped {
                EventKind::Stopped {
                    checkpoint: summary.checkpoint.clone(),
                }
            } else {
                EventKind::Finished { seconds, tokens }
            };
            recorder.event(Event::now(summary.step, ended));
        }
        Ok(summary)
    }

    /// The micro-batches of this rank from the step after `first_step` on, read ahead of time.
    fn batches(run: &Run<'_>, first_step: u64, rank: usize) -> Result<Prefetch, TrainError> {
        let plan = run.plan;
        let shape = BatchShape {
            global_batch: plan.config.train.global_batch_size,
            micro_batch: plan.micro_batch_size,
            world: plan.world_size,
        };
        let data = &plan.config.data;
        let weights: Option<Vec<f64>> = data.sources.iter().map(|source| source.weight).collect();
        let loader = Loader::new(
            run.corpus,
            data.seq_len,
            plan.config.train.seed,
            weights.as_deref(),
        )?;
        let accumulation = plan.accumulation_steps;
        let ranges = (first_step..run.last_step).flat_map(move |step| {
            (0..accumulation).map(move |micro| samples_for(step, micro, rank, &shape))
        });
        Ok(Prefetch::start(Arc::new(loader), ranges, 2 * accumulation)?)
    }

    /// Trains to the last step. Returns whether it was asked to stop before.
    fn steps(&mut self) -> Result<bool, TrainError> {
        let config = &self.run.plan.config;
        if self.state.step >= self.run.last_step {
            let text = format!(
                "nothing left to train: step {} of {} is done; raise `train.steps` or --max-steps to go on",
                self.state.step, self.run.last_step
            );
            if self.group.rank() == 0 {
                self.warn(text);
            }
            return Ok(false);
        }
        loop {
            let stop = self.step()?;
            let (step, last) = (self.state.step, self.state.step >= self.run.last_step);
            // Before the save, so that a run cut in between does both again.
            if is_due(step, config.eval.every.0) && !stop && !last {
                self.evaluate()?;
            }
            if stop || last || is_due(step, config.checkpoint.every.0) {
                self.save(stop || last)?;
            }
            if stop || last {
                return Ok(stop && !last);
            }
        }
    }

    /// One optimizer step. Returns whether any rank was asked to stop.
    fn step(&mut self) -> Result<bool, TrainError> {
        let started = Instant::now();
        let step = self.state.step + 1;
        let sums = self.accumulate(step)?;
        if sums.tokens_trained == 0.0 {
            let samples = self.run.plan.config.train.global_batch_size;
            return Err(TrainError::NothingTrained { step, samples });
        }
        let loss = sums.nll / sums.tokens_trained;
        let grad_norm = optimizer::gradient_norm(&self.state, sums.tokens_trained)?;
        self.check(step, loss, grad_norm)?;

        let config = &self.run.plan.config;
        let update = Update {
            step,
            lr: learning_rate(config, step),
            tokens_trained: sums.tokens_trained,
        };
        optimizer::apply(
            &config.optimizer,
            self.model.parameters(),
            &mut self.state,
            &update,
            grad_norm,
        )?;
        self.state.gradients.fill_zero();
        self.state.step = step;
        self.report(&update, loss, grad_norm, started);
        Ok(sums.stop)
    }

    /// Forward and backward of every micro-batch, then the sums over ranks.
    fn accumulate(&mut self, step: u64) -> Result<StepSums, TrainError> {
        let mut sums = [0.0; 3];
        {
            let parameters =
                crate::state::parameter_views(&self.state.layout, &self.state.parameters)?;
            let mut gradients = self.state.gradients.views_mut(self.state.layout.slots())?;
            for _ in 0..self.run.plan.accumulation_steps {
                let batches = &mut self.batches;
                let batch = self
                    .waiting_for_data
                    .time(|| batches.next())
                    .expect("a batch for every step left")?;
                let loss = self
                    .engine
                    .forward_backward(&batch, &parameters, &mut gradients)?;
                sums[0] += loss.nll_sum;
                sums[1] += loss.trained as f64;
            }
        }
        if step == self.first_step + 1
            && let Some(id) = self.engine.untouched()
        {
            let parameter = self.model.parameters()[id].name.clone();
            return Err(TrainError::MissingGradient {
                parameter,
                why: "no backward reached it",
            });
        }
        sums[2] = f64::from(u8::from(self.run.stop.load(Ordering::Relaxed)));
        let (group, gradients, len) = (
            &mut *self.group,
            &mut self.state.gradients,
            self.state.layout.len(),
        );
        self.in_collectives.time(|| {
            group.all_reduce(gradients, 0..len)?;
            group.sum_scalars(&mut sums)
        })?;
        Ok(StepSums {
            nll: sums[0],
            tokens_trained: sums[1],
            stop: sums[2] > 0.0,
        })
    }

    /// Stops the run before a bad gradient changes a weight.
    fn check(&self, step: u64, loss: f64, grad_norm: f64) -> Result<(), TrainError> {
        let TrainState {
            gradients, layout, ..
        } = &self.state;
        if !loss.is_finite() || !grad_norm.is_finite() {
            let parameter = first_parameter(gradients, layout, is_not_finite)?;
            let first = parameter.map_or_else(String::new, |name| {
                format!("; the first gradient that is not finite is that of `{name}`")
            });
            let what = format!("loss {loss}, gradient norm {grad_norm}{first}");
            return Err(TrainError::Diverged { step, what });
        }
        if step == self.first_step + 1 {
            let zero = first_parameter(gradients, layout, is_zero)?;
            if let Some(parameter) = zero {
                return Err(TrainError::MissingGradient {
                    parameter,
                    why: "it is zero everywhere",
                });
            }
        }
        Ok(())
    }

    fn report(&mut self, update: &Update, loss: f64, grad_norm: f64, started: Instant) {
        let Some(recorder) = &self.recorder else {
            return;
        };
        let plan = self.run.plan;
        let step_s = started.elapsed().as_secs_f64();
        let tokens_per_s = plan.tokens_per_step as f64 / step_s;
        let (data_s, comm_s) = (self.waiting_for_data.take(), self.in_collectives.take());
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
            clipped: optimizer::clip_factor(plan.config.optimizer.clip_grad_norm, grad_norm) < 1.0,
            step_s,
            data_s,
            comm_s,
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
            memory_bytes,
            due: is_due(update.step, plan.config.log.every.0),
        }));
    }

    /// Saves a checkpoint. A disk that refuses costs a warning and not the run, unless the
    /// checkpoint is the `last` one.
    fn save(&mut self, last: bool) -> Result<(), TrainError> {
        let started = Instant::now();
        let step = self.state.step;
        let not_finite =
            first_parameter(&self.state.parameters, &self.state.layout, is_not_finite)?;
        if let Some(name) = not_finite {
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
        };
        match self
            .checkpoints
            .save(&self.state, &run, obstacle, &mut *self.group)?
        {
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
                if self.group.rank() == 0 {
                    self.warn(format!(
                        "the checkpoint of step {step} was given up, training goes on: {why}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<Evaluation, TrainError> {
        let parameters = self.state.parameter_views()?;
        let rows = self.run.plan.micro_batch_size;
        let evaluation = evaluate(
            &self.engine,
            &parameters,
            &self.validation,
            rows,
            &mut *self.group,
            self.state.step,
        )?;
        if let Some(recorder) = &self.recorder {
            recorder.event(evaluation_event(&evaluation));
            (self.tell)(WorkerMessage::Evaluation(evaluation.clone()));
        }
        if !evaluation.loss.is_finite() {
            let what = format!("validation loss {}", evaluation.loss);
            return Err(TrainError::Diverged {
                step: self.state.step,
                what,
            });
        }
        Ok(evaluation)
    }

    /// The last validation, and a sample of what was learned.
    fn conclude(&mut self) -> Result<Evaluation, TrainError> {
        let evaluation = self.evaluate()?;
        let eval = &self.run.plan.config.eval;
        if self.group.rank() == 0 && !eval.sample_prompt.is_empty() {
            let tokenizer = self.run.corpus.tokenizer()?;
            let parameters = self.state.parameter_views()?;
            let sampling = Sampling {
                max_tokens: eval.sample_tokens,
                temperature: 0.8,
                top_p: 0.95,
                seed: self.run.plan.config.train.seed,
            };
            let mut text = String::new();
            let prompt = &eval.sample_prompt;
            continue_text(
                self.model,
                &parameters,
                &tokenizer,
                prompt,
                sampling,
                |new| text.push_str(new),
            )?;
            if let Some(recorder) = &self.recorder {
                let (prompt, text) = (eval.sample_prompt.clone(), text.clone());
                recorder.event(Event::now(
                    self.state.step,
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

    fn warn(&mut self, text: String) {
        let rank = self.group.rank();
        if let Some(recorder) = &self.recorder {
            recorder.event(Event::now(
                self.state.step,
                EventKind::Warning {
                    rank,
                    text: text.clone(),
                },
            ));
        }
        (self.tell)(WorkerMessage::Warning { rank, text });
    }
}

/// How many more checkpoints there will be on the disk at once: one is written before an old one goes.
fn checkpoints_to_come(run: &Run<'_>, first_step: u64) -> u64 {
    let config = &run.plan.config.checkpoint;
    let left = run.last_step.saturating_sub(first_step);
    let saves = left.checked_div(config.every.0).unwrap_or(0) + 1;
    match (config.keep, run.resume) {
        // Kept ones are there already, and make room for new ones but for the first.
        (1.., Some(_)) => 1,
        (keep @ 1.., None) => saves.min(keep as u64 + 1),
        (0, _) => saves,
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

/// A checkpoint of other data cannot go on; one of another config can, and says so at launch.
fn check_origin(path: &Path, saved: &RunState, run: &Run<'_>) -> Result<(), TrainError> {
    if saved.corpus_fingerprint == run.corpus.fingerprint() {
        return Ok(());
    }
    let why = format!(
        "it was trained on data {}, this run has {}",
        saved.corpus_fingerprint,
        run.corpus.fingerprint()
    );
    Err(TrainError::ForeignCheckpoint {
        path: path.to_owned(),
        why,
    })
}

/// Whether something done every `every` steps is done after `step`; never if `every` is 0.
fn is_due(step: u64, every: u64) -> bool {
    every != 0 && step.is_multiple_of(every)
}
