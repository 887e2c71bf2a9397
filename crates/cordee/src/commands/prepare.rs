//! Text to tokens before ranks exist, and what a person is told meanwhile.

use std::{env, path::PathBuf};

use anyhow::anyhow;
use cordee_config::Plan;
use cordee_data::{Corpus, DataError, Loader, Packed, PrepareSpec, Source, Stage, prepare};
use cordee_protocol::ExitCode;

use crate::{console::Console, failure::Failure, run_dir::TOKENIZER_FILE};

/// Tokenises what the plan names, or finds it in the cache.
pub(crate) fn prepare_data(plan: &Plan, console: &mut Console) -> Result<Corpus, Failure> {
    let data = &plan.config.data;
    let cache = match &data.cache_dir {
        Some(dir) => dir.clone(),
        None => default_cache()?,
    };
    if let Some(tokenizer) = &data.tokenizer
        && let Err(error) = fs_err::metadata(tokenizer)
    {
        return Err(Failure::usage(error)
            .with_hint("data.tokenizer names a tokenizer.json, or the directory that holds one"));
    }
    if let (Some(weights), None) = (&plan.config.model.init_from, &data.tokenizer)
        && !weights.join(TOKENIZER_FILE).exists()
    {
        // A vocabulary made here would give the weights' tokens other meanings.
        let error = anyhow!("{} has weights but no {TOKENIZER_FILE}", weights.display());
        return Err(Failure::usage(error)
            .with_hint("set data.tokenizer to the tokenizer that the weights were trained with"));
    }
    let corpus = prepare(&PrepareSpec::from(&plan.config), &cache, &mut |stage| {
        show(&stage, console);
    })
    .map_err(failure)?;
    // What a rank would refuse is refused before there are ranks.
    for (source, config) in corpus.sources().iter().zip(&data.sources) {
        if let Some(separator) = &config.document_separator
            && source.train.documents <= 1
        {
            console.warning(&format!(
                "source `{}` is one document: its document_separator {separator:?} occurs nowhere (does the text have CRLF line ends?)",
                source.name
            ));
        }
        for warning in of_examples(source, data.seq_len) {
            console.warning(&warning);
        }
        if source.validation.tokens < 2 {
            let error = anyhow!(
                "source `{}` has {} tokens held out for validation, and at least 2 are needed",
                source.name,
                source.validation.tokens
            );
            return Err(Failure::usage(error)
                .with_hint("raise data.validation_fraction, or give the source more text"));
        }
    }
    let weights: Option<Vec<f64>> = data.sources.iter().map(|source| source.weight).collect();
    Loader::new(
        &corpus,
        data.seq_len,
        plan.config.train.seed,
        weights.as_deref(),
    )
    .map_err(failure)?;
    Ok(corpus)
}

/// What a person should know of the examples of a source; nothing of text.
fn of_examples(source: &Source, seq_len: usize) -> Vec<String> {
    let splits = [&source.train, &source.validation];
    let sum = |figure: fn(&Packed) -> u64| -> u64 {
        splits
            .iter()
            .filter_map(|split| split.packed.as_ref())
            .map(figure)
            .sum()
    };
    let (left_out, truncated) = (sum(|it| it.left_out), sum(|it| it.truncated));
    let examples = splits.map(|split| split.documents).iter().sum::<u64>() + left_out;
    let name = &source.name;
    let longer = format!(
        "of {examples} examples are longer than {} tokens",
        seq_len + 1
    );
    let mut warnings = Vec::new();
    if left_out > 0 {
        warnings.push(format!(
            "source `{name}`: {left_out} {longer} and left out: raise data.seq_len to learn them, or set too_long"
        ));
    }
    if truncated > 0 {
        warnings.push(format!(
            "source `{name}`: {truncated} {longer} and lose their end, so that nothing teaches the model to end these"
        ));
    }
    let spelled = sum(|it| it.spell_special);
    if spelled > 0 {
        warnings.push(format!(
            "source `{name}`: {spelled} of {examples} examples spell a special token of the tokenizer, which is plain text to the model: give conversations as messages, and no end of text"
        ));
    }
    warnings
}

/// Data that cannot be used is the user's to change; data that cannot be read is the machine's.
fn failure(error: DataError) -> Failure {
    let code = match error {
        DataError::Io(_) | DataError::Read { .. } | DataError::Damaged { .. } => {
            ExitCode::Environment
        }
        _ => ExitCode::Usage,
    };
    Failure::new(code, error)
}

/// Where things are kept that can be made again: tokenised data, compiled kernels. `None` where no
/// variable names a directory.
pub fn cache_directory() -> Option<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let home = || absolute("HOME").map(|home| home.join(".cache"));
    absolute("XDG_CACHE_HOME")
        .or_else(home)
        .map(|cache| cache.join("cordee"))
}

fn default_cache() -> Result<PathBuf, Failure> {
    cache_directory().ok_or_else(|| {
        let error =
            anyhow!("neither XDG_CACHE_HOME nor HOME names a directory to keep tokenised data in");
        Failure::new(ExitCode::Environment, error).with_hint("set data.cache_dir")
    })
}

fn show(stage: &Stage, console: &mut Console) {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let text = match stage {
        Stage::Cached { .. } | Stage::Prepared { .. } => return,
        Stage::Damaged {
            entry,
            reason,
            moved_to,
        } => {
            return console.warning(&format!(
                "tokenised data in {} is damaged and made again: {reason}; it lies in {} now",
                entry.display(),
                moved_to.display()
            ));
        }
        Stage::TrainedVocabulary { vocab_size, asked } if vocab_size < asked => {
            return console.warning(&format!(
                "the text yields a vocabulary of {vocab_size} only, fewer than data.vocab_size = {asked}"
            ));
        }
        Stage::TrainedVocabulary { vocab_size, .. } => {
            format!("trained a vocabulary of {vocab_size}")
        }
        Stage::Hashing { path, bytes } => {
            format!("reading {} ({:.1} MiB)", path.display(), mebibytes(*bytes))
        }
        Stage::Waiting { entry } => format!(
            "waiting for another process that prepares {}",
            entry.display()
        ),
        Stage::Splitting { source } => format!("splitting {source} into documents"),
        Stage::TrainingVocabulary { vocab_size, bytes } => {
            format!(
                "training a vocabulary of {vocab_size} on {:.1} MiB",
                mebibytes(*bytes)
            )
        }
        Stage::Tokenizing {
            source,
            done,
            total,
        } => {
            format!(
                "tokenising {source}: {:.1} of {:.1} MiB",
                mebibytes(*done),
                mebibytes(*total)
            )
        }
    };
    console.preparing(&text);
}
