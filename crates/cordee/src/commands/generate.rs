//! `cordee generate`: continue a prompt with a trained model.

use cordee_data::Tokenizer;
use cordee_memory::DType;
use cordee_model::{Model, Sampling, generate};
use cordee_protocol::ExitCode;

use super::{checkpoint::valid_checkpoint, train::DEFAULT_WORKERS};
use crate::{args::GenerateArgs, console::Console, failure::Failure, run_dir::RunDir};

pub(crate) fn run(args: &GenerateArgs) -> Result<u8, Failure> {
    let (run, named) = RunDir::containing(&args.run)?;
    let loaded = cordee_config::load(&run.config(), &[]).map_err(Failure::usage)?;
    let config = loaded.plan(DEFAULT_WORKERS).map_err(Failure::usage)?.config;
    let tokenizer = Tokenizer::open(&run.tokenizer()).map_err(failed)?;
    let model =
        Model::new(&config.model, tokenizer.vocab_size(), config.data.seq_len).map_err(failed)?;
    let layout = model.layout(DType::F32).map_err(failed)?;
    let parameters =
        cordee_train::load_parameters(&valid_checkpoint(&run, named)?, &layout).map_err(failed)?;
    let views = layout
        .slots()
        .iter()
        .map(|slot| parameters.slot_view(slot))
        .collect::<Result<Vec<_>, _>>();

    let prompt = tokenizer.encode(&args.prompt).map_err(failed)?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
    };
    let mut text = Growing {
        tokenizer: &tokenizer,
        tokens: Vec::new(),
        shown: 0,
    };
    Console::print_data(&args.prompt);
    generate(
        &model,
        &views.map_err(failed)?,
        &prompt,
        args.max_tokens,
        tokenizer.end_of_text(),
        sampling,
        |token| {
            Console::print_data(&text.push(token));
        },
    )
    .map_err(failed)?;
    Console::print_data("\n");
    Ok(ExitCode::Done.code())
}

/// Text that grows by tokens. A token may end inside a character, so what is new is known only when
/// the character is whole.
struct Growing<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    shown: usize,
}

impl Growing<'_> {
    fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens).unwrap_or_default();
        if text.ends_with(char::REPLACEMENT_CHARACTER) || text.len() <= self.shown {
            return String::new();
        }
        let new = text[self.shown..].to_owned();
        self.shown = text.len();
        new
    }
}

fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(ExitCode::Failed, error)
}
