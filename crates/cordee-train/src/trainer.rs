//! The run of one rank, from its first step to its last.

mod judging;
mod saving;
mod step;

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
use cordee_metrics::{Event, EventKind, Recorder};
use cordee_model::{Model, weights};
use cordee_ops::attention::{Preparation, cudnn};
use cordee_protocol::{Phase, StatusPage, Summary, WorkerMessage};

use crate::{
    Compute, TrainError,
    banner::banner,
    checkpoints::{Checkpoints, RunState, check_replicas, restore},
    learner::Learner,
    out_of_memory::Circumstances,
    progress::Stopwatch,
};

/// Steps whose batches are read ahead of time.
pub(crate) const PREFETCHED_STEPS: usize = 2;

/// What a rank is told to do.
pub struct Run<'a> {
    /// The resolved config.
    pub plan: &'a Plan,
    /// Where to compute, and in which numbers.
    pub compute: &'a Compute,
    /// What moves the bytes between ranks, in words.
    pub transport: &'a str,
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
    /// The last step that an earlier attempt has done; those up to it are done again.
    pub furthest_step: u64,
    /// Set from outside to stop at the next step boundary; the page has a word for that, too.
    pub stop: &'a AtomicBool,
    /// Where the rank says what it is at.
    pub status: &'a StatusPage,
}

impl Run<'_> {
    /// Whether this rank was asked to stop.
    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.status.stop_requested()
    }
}

/// Trains from the checkpoint, from given weights or from fresh ones, to the last step or until asked
/// to stop. Every rank of `group` calls this with the same `run`; what there is to tell goes to `tell`.
pub fn train(
    run: &Run<'_>,
    group: &mut dyn ProcessGroup,
    tell: &mut dyn FnMut(WorkerMessage),
) -> Result<Summary, TrainError> {
    let started = Instant::now();
    let config = &run.plan.config;
    // Existing weights may have rows that no token uses.
    let vocab_size = run.corpus.vocab_size();
    let vocab_size = config.model.vocab_size.unwrap_or(0).max(vocab_size);
    let model = Model::new(&config.model, vocab_size, config.data.seq_len)?;
    let _preparation = prepared(run, &model);
    let circumstances = |step| Circumstances {
        plan: run.plan,
        vocab_size,
        compute: run.compute,
        step,
    };
    let mut trainer = Trainer::prepare(run, &model, group, tell)
        .map_err(|error| circumstances(0).explain(error))?;
    let ran = trainer.run(started);
    let step = trainer.learner.state.step + 1;
    let summary = ran.map_err(|error| circumstances(step).explain(error))?;
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

/// What steps need and can be made beside the start.
fn prepared(run: &Run<'_>, model: &Model) -> Preparation {
    let sources = run.corpus.sources();
    if sources.iter().any(|source| source.train.packed.is_some()) {
        // Of sequences that are not known yet.
        return Preparation::default();
    }
    let sequences = [run.plan.micro_batch_size, run.plan.config.data.seq_len];
    model.prepare(&run.compute.device, run.compute.numbers, sequences)
}

/// Everything a rank holds while it trains.
struct Trainer<'a> {
    run: &'a Run<'a>,
    learner: Learner<'a>,
    tell: &'a mut dyn FnMut(WorkerMessage),
    batches: Prefetch,
    validation: Validation,
    checkpoints: Checkpoints,
    /// On rank 0 alone.
    recorder: Option<Recorder>,
    first_step: u64,
    /// Whether the checkpoint that the run goes on from was to be tested when the run was stopped.
    evaluation_due: bool,
    newest_checkpoint: Option<String>,
    waiting_for_data: Stopwatch,
    /// Seconds that the group had spent in collectives when the last step ended.
    comm_seconds: f64,
}

impl<'a> Trainer<'a> {
    fn prepare(
        run: &'a Run<'a>,
        model: &'a Model,
        group: &'a mut dyn ProcessGroup,
        tell: &'a mut dyn FnMut(WorkerMessage),
    ) -> Result<Self, TrainError> {
        run.status.enter(Phase::Loading, 0);
        let config = &run.plan.config;
        let recompute = config.train.recompute;
        let mut evaluation_due = false;
        let mut learner = Learner::new(model, run.compute, recompute, &config.parallel, group)?;
        let state = &mut learner.state;
        match (run.resume, &config.model.init_from) {
            (Some(path), _) => {
                let saved = restore(path, state, run.status)?;
                check_origin(path, &saved, run)?;
                evaluation_due = saved.evaluation_due;
            }
            (None, Some(dir)) => {
                state
                    .fill_parameters(|layout, buffer| weights::load(dir, model, layout, buffer))?;
            }
            (None, None) => state.initialise(model, config.train.seed)?,
        }
        check_replicas(state, learner.group)?;
        let first_step = state.step;
        let checkpoints = Checkpoints::new(run.run_dir, &learner.state, run.plan, run.status)?;
        let recorder = if learner.group.rank() == 0 {
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
            batches: Self::batches(run, first_step, learner.group.rank())?,
            validation: Validation::new(run.corpus, config.data.seq_len)?,
            checkpoints,
            newest_checkpoint: run.resume.map(|path| path.display().to_string()),
            waiting_for_data: Stopwatch::default(),
            comm_seconds: learner.group.seconds(),
            run,
            learner,
            tell,
            recorder,
            first_step,
            evaluation_due,
        })
    }

    /// Trains, then tests what was learned unless it was asked to stop.
    fn run(&mut self, started: Instant) -> Result<Summary, TrainError> {
        let mut stopped = self.steps()?;
        let mut evaluation = None;
        if !stopped {
            evaluation = self.conclude()?;
            // Asked to stop in it, the run begins it anew when it goes on.
            stopped = evaluation.is_none();
        }
        self.run
            .status
            .enter(Phase::Concluding, self.learner.state.step);
        let summary = Summary {
            step: self.learner.state.step,
            stopped,
            seconds: started.elapsed().as_secs_f64(),
            tokens: (self.learner.state.step - self.first_step) * self.run.plan.tokens_per_step,
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
        let ahead = PREFETCHED_STEPS * accumulation;
        Ok(Prefetch::start(Arc::new(loader), ranges, ahead)?)
    }

    /// Trains to the last step. Returns whether it was asked to stop before.
    fn steps(&mut self) -> Result<bool, TrainError> {
        let config = &self.run.plan.config;
        if self.learner.state.step >= self.run.last_step {
            let text = format!(
                "nothing left to train: step {} of {} is done; raise `train.steps` or --max-steps to go on",
                self.learner.state.step, self.run.last_step
            );
            if self.learner.group.rank() == 0 {
                self.warn(text);
            }
            return Ok(false);
        }
        if self.evaluation_due && self.evaluate()?.is_none() {
            // Nothing has changed since the checkpoint.
            return Ok(true);
        }
        loop {
            let mut stop = self.step()?;
            if self.learner.state.step == self.first_step + 1 {
                self.tell_refusals();
            }
            let (step, last) = (
                self.learner.state.step,
                self.learner.state.step >= self.run.last_step,
            );
            // Before the save, so that a run cut in between does both again.
            self.evaluation_due = is_due(step, config.eval.every.0) && !last;
            if self.evaluation_due && !stop {
                self.evaluation_due = self.evaluate()?.is_none();
                stop = self.evaluation_due;
            }
            if stop || last || is_due(step, config.checkpoint.every.0) {
                self.save(stop || last)?;
            }
            if stop || last {
                return Ok(stop && !last);
            }
        }
    }

    /// Tells what cuDNN would not compute, which is known once everything ran.
    fn tell_refusals(&mut self) {
        if self.learner.group.rank() == 0 {
            for refusal in cudnn::refusals() {
                self.warn(format!("attention by cordee's own kernel: {refusal}"));
            }
        }
    }

    fn warn(&mut self, text: String) {
        let rank = self.learner.group.rank();
        if let Some(recorder) = &self.recorder {
            recorder.event(Event::now(
                self.learner.state.step,
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
