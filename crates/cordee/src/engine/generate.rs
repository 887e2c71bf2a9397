//! `cordee generate`: continue a prompt with a trained model.

use std::ops::ControlFlow;

use cordee::{Console, Failure, GenerateArgs, one_device};
use cordee_model::Sampling;
use cordee_protocol::ExitCode;
use cordee_train::continue_text;

use super::{opened::Opened, worker::open_device};

pub(crate) fn run(args: &GenerateArgs) -> Result<u8, Failure> {
    let device = one_device(args.device)?;
    let mut opened = Opened::at(&args.model)?;
    let moved = open_device(device, 0).and_then(|device| opened.move_to(&device));
    moved.map_err(|error| Failure::new(ExitCode::Environment, error))?;
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
        |new| {
            Console::print_data(new);
            ControlFlow::Continue(())
        },
    )
    .map_err(|error| Failure::new(ExitCode::Failed, error))?;
    Console::print_data("\n");
    Ok(ExitCode::Done.code())
}
