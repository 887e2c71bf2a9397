//! `cordee export`: a run's weights as a directory that other programs load.

use std::path::Path;

use anyhow::anyhow;
use cordee::{Console, ExportArgs, ExportType, Failure, RunDir};
use cordee_model::weights::{self, FileType};
use cordee_protocol::ExitCode;
use fs_err as fs;

use super::opened::Opened;

pub(crate) fn run(args: &ExportArgs) -> Result<u8, Failure> {
    let (run, named) = RunDir::containing(&args.run)?;
    expect_empty(&args.dir)?;
    let opened = Opened::run(&run, named)?;
    let file_type = match args.dtype {
        ExportType::F32 => FileType::F32,
        ExportType::Bf16 => FileType::Bf16,
    };
    fs::create_dir_all(&args.dir).map_err(failed)?;
    for file in [run.tokenizer(), run.tokenizer_config()] {
        // A run of before has none of the second.
        if let (true, Some(name)) = (file.exists(), file.file_name()) {
            fs::copy(&file, args.dir.join(name)).map_err(failed)?;
        }
    }
    weights::save(
        &args.dir,
        &opened.config,
        &opened.model,
        &opened.parameters()?,
        file_type,
        Some(opened.tokenizer.end_of_text()),
    )
    .map_err(failed)?;
    Console::print_data(&format!(
        "{}: {} parameters\n",
        args.dir.display(),
        opened.model.parameter_count()
    ));
    Ok(ExitCode::Done.code())
}

/// Nothing that is there is written over.
fn expect_empty(dir: &Path) -> Result<(), Failure> {
    let is_empty = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(Failure::usage(error)),
    };
    if is_empty {
        return Ok(());
    }
    let error = anyhow!("{} is not empty", dir.display());
    Err(Failure::usage(error).with_hint("export into a directory that is new or empty"))
}

fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(ExitCode::Failed, error)
}
