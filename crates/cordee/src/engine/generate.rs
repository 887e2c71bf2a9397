//! `cordee generate`: continue a prompt with a trained model.

use cordee::{Console, Failure, GenerateArgs};
use cordee_model::Sampling;
use cordee_protocol::ExitCode;
use cordee_train::continue_text;

use super::opened::Opened;

pub(crate) fn run(args: &GenerateArgs) -> Result<u8, Failure> {
    let opened = Opened::at(&args.model)?;
    let sampling = Sampling {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
    };
    Console::print_data(&args.prompt);
    continue_text(
        &opened.model,
        &opened.parameters()?,
        &opened.tokenizer,
        &args.prompt,
        sampling,
        Console::print_data,
    )
    .map_err(|error| Failure::new(ExitCode::Failed, error))?;
    Console::print_data("\n");
    Ok(ExitCode::Done.code())
}
