//! Where a run goes on, found out before anything of it is changed.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use cordee_checkpoint::{self as checkpoint, Checkpoint, CheckpointError};
use cordee_config::{Config, Machine, Plan};
use cordee_data::Corpus;
use cordee_protocol::ExitCode;

use crate::{failure::Failure, run_dir::RunDir};

/// How a run goes on.
#[derive(Debug, Default)]
pub(crate) struct Course {
    /// The checkpoint, verified; none to start at step 0.
    pub(crate) checkpoint: Option<PathBuf>,
    /// What a person should know of it.
    pub(crate) warnings: Vec<String>,
    /// The checkpoint's step.
    go_on_after: Option<u64>,
}

impl Course {
    /// The course of a run that has begun: from the checkpoint named, or from the newest valid one.
    pub(crate) fn find(
        run: &RunDir,
        named: Option<PathBuf>,
        plan: &Plan,
        corpus: &Corpus,
    ) -> Result<Self, Failure> {
        let mut course = Self::default();
        let found = match named {
            Some(path) => Some(checkpoint::verify(&path).map_err(Failure::usage)?),
            None => course.newest(run)?,
        };
        let before = cordee_config::load(&run.config(), &[]).map_err(Failure::usage)?;
        let before = before.plan(like(plan)).map_err(Failure::usage)?;
        if let Some(found) = found {
            course.go_on_after = Some(found.step());
            check_fit(&found, &before.config, plan, corpus)?;
            course.checkpoint = Some(found.path().to_owned());
        }
        if before.fingerprint != plan.fingerprint {
            let changes = cordee_config::differences(&before.config, &plan.config).join(", ");
            course.warnings.push(format!(
                "the config differs from the one this run began with, so it will not end as an undisturbed run would: {changes}"
            ));
        }
        Ok(course)
    }

    /// The newest valid checkpoint. That there is none whole, though there were some, is for a
    /// person to decide about: starting at step 0 would throw the rest of the run away.
    fn newest(&mut self, run: &RunDir) -> Result<Option<Checkpoint>, Failure> {
        let found = checkpoint::newest_valid(&run.checkpoints()).map_err(failed)?;
        let rejected = found.rejected.iter();
        let passed_over: Vec<String> = rejected
            .map(|it| format!("{} is not used: {}", it.path.display(), it.reason))
            .collect();
        if found.checkpoint.is_none() {
            let candidates = checkpoint::discover(&run.checkpoints()).map_err(failed)?;
            if candidates
                .iter()
                .any(|it| it.kind == checkpoint::CandidateKind::Committed)
            {
                let error = anyhow!(
                    "no checkpoint of {} is whole:\n{}",
                    run.path().display(),
                    passed_over.join("\n")
                );
                let hint = "to start over, choose another --run-dir; this one is left as it is";
                return Err(Failure::new(ExitCode::Failed, error).with_hint(hint));
            }
            self.warnings.push(format!(
                "{} has no checkpoint to go on from, starting at step 0",
                run.path().display()
            ));
        }
        self.warnings.extend(passed_over);
        Ok(found.checkpoint)
    }

    /// Steps done before it; none to start at step 0.
    pub(crate) fn step(&self) -> Option<u64> {
        self.go_on_after
    }

    /// Takes the course: newer checkpoints are set aside, be they of a course that is left or
    /// damaged, so that no later resume jumps onto them and none is kept in place of a good one.
    pub(crate) fn take(&mut self, run: &RunDir) -> Result<(), Failure> {
        let Some(step) = self.go_on_after else {
            return Ok(());
        };
        for left in checkpoint::set_aside_newer(&run.checkpoints(), step).map_err(failed)? {
            self.warnings.push(format!(
                "going on after step {step}: a newer checkpoint is kept as {}",
                left.display()
            ));
        }
        Ok(())
    }
}

/// What a machine fills in that computes as `plan` says.
fn like(plan: &Plan) -> Machine {
    Machine {
        device: plan.device,
        workers: plan.world_size,
    }
}

/// Checks that the model and the data are those of the checkpoint.
fn check_fit(
    checkpoint: &Checkpoint,
    before: &Config,
    plan: &Plan,
    corpus: &Corpus,
) -> Result<(), Failure> {
    let changed: Vec<String> = cordee_config::differences(before, &plan.config)
        .into_iter()
        .filter(|change| change.starts_with("model.") && !change.starts_with("model.init_std"))
        .collect();
    if !changed.is_empty() {
        return Err(foreign(
            checkpoint.path(),
            &format!("it is of another model: {}", changed.join(", ")),
        ));
    }
    let trained_on = checkpoint.state()["corpus_fingerprint"]
        .as_str()
        .unwrap_or("unknown");
    if trained_on != corpus.fingerprint() {
        let why = format!(
            "it was trained on data {trained_on}, this run has {}",
            corpus.fingerprint()
        );
        return Err(foreign(checkpoint.path(), &why));
    }
    Ok(())
}

fn foreign(path: &Path, why: &str) -> Failure {
    Failure::usage(anyhow!("{} does not fit this run: {why}", path.display()))
        .with_hint("resume with the model and data the run began with, or choose another --run-dir")
}

fn failed(error: CheckpointError) -> Failure {
    Failure::new(ExitCode::Failed, error)
}
