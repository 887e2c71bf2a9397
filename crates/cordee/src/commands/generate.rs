//! `cordee generate`: continue a prompt with a trained model.

use cordee_data::Tokenizer;
use cordee_memory::DType;
use cordee_model::{Model, Sampling};
use cordee_protocol::ExitCode;
use cordee_train::continue_text;

use super::checkpoint::valid_checkpoint;
use crate::{
    args::GenerateArgs, console::Console, devices::default_workers, failure::Failure,
    run_dir::RunDir,
};

pub(crate) fn run(args: &GenerateArgs) -> Result<u8, Failure> {
    let (run, named) = RunDir::containing(&args.run)?;
    let loaded = cordee_config::load(&run.config(), &[]).map_err(Failure::usage)?;
    let config = loaded
        .plan(default_workers()?)
        .map_err(Failure::usage)?
        .config;
    let tokenizer = Tokenizer::open(&run.tokenizer()).map_err(failed)?;
    let vocab_size = config
        .model
        .vocab_size
        .unwrap_or(0)
        .max(tokenizer.vocab_size());
    let model = Model::new(&config.model, vocab_size, config.data.seq_len).map_err(failed)?;
    let layout = model.layout(DType::F32).map_err(failed)?;
    let parameters =
        cordee_train::load_parameters(&valid_checkpoint(&run, named)?, &layout).map_err(failed)?;
    let views = layout
        .slots()
        .iter()
        .map(|slot| parameters.slot_view(slot))
        .collect::<Result<Vec<_>, _>>();

    let sampling = Sampling {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
    };
    Console::print_data(&args.prompt);
    continue_text(
        &model,
        &views.map_err(failed)?,
        &tokenizer,
        &args.prompt,
        sampling,
        Console::print_data,
    )
    .map_err(failed)?;
    Console::print_data("\n");
    Ok(ExitCode::Done.code())
}

fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(ExitCode::Failed, error)
}
