//! `cordee checkpoint`: what is on disk, verified.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use cordee_checkpoint::{self as checkpoint, Checkpoint};
use cordee_protocol::ExitCode;

use crate::{args::CheckpointCommand, console::Console, failure::Failure, run_dir::RunDir};

pub(crate) fn run(command: &CheckpointCommand) -> Result<u8, Failure> {
    let CheckpointCommand::Inspect { path } = command;
    let (run, named) = RunDir::containing(path)?;
    let path = valid_checkpoint(&run, named)?;
    let checkpoint = Checkpoint::open(&path).map_err(failed)?;
    Console::print_data(&describe(&checkpoint, &path)?);
    Ok(ExitCode::Done.code())
}

/// The named checkpoint, verified, or the newest valid one of the run. What is passed over is said.
pub fn valid_checkpoint(run: &RunDir, named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        checkpoint::verify(&path).map_err(failed)?;
        return Ok(path);
    }
    let found = checkpoint::newest_valid(&run.checkpoints()).map_err(failed)?;
    for rejected in &found.rejected {
        Console::print_warning(&format!(
            "{} is not used: {}",
            rejected.path.display(),
            rejected.reason
        ));
    }
    let newest = found
        .checkpoint
        .map(|checkpoint| checkpoint.path().to_owned());
    newest.ok_or_else(|| {
        failed(anyhow!(
            "{} holds no valid checkpoint",
            run.checkpoints().display()
        ))
    })
}

fn describe(checkpoint: &Checkpoint, path: &Path) -> Result<String, Failure> {
    let mut text = format!(
        "{}\nstep {}, {} writers\n\n",
        path.display(),
        checkpoint.step(),
        checkpoint.writers().len()
    );
    let tensors = checkpoint.tensors();
    let widest = |length: fn(&checkpoint::TensorSpec) -> usize| {
        tensors.iter().map(length).max().unwrap_or(0)
    };
    let name_width = widest(|tensor| tensor.name.len());
    let shape_width = widest(|tensor| format!("{:?}", tensor.shape).len());
    for tensor in tensors {
        let hash = checkpoint.tensor_hash(&tensor.name).map_err(failed)?;
        let shape = format!("{:?}", tensor.shape);
        let _ = writeln!(
            text,
            "{:name_width$}  {:?}  {shape:shape_width$}  {hash}",
            tensor.name, tensor.dtype
        );
    }
    text.push_str("\nmemory of each writer's rank:\n");
    for (writer, record) in checkpoint.writers().iter().enumerate() {
        let _ = writeln!(
            text,
            "rank {writer:3}  {}",
            record.memory_hash.as_deref().unwrap_or("not recorded")
        );
    }
    Ok(text)
}

fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(ExitCode::Failed, error)
}
