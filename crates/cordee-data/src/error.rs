//! What can go wrong between text and batches.

use std::io;
use std::path::PathBuf;

/// Why text could not be prepared, or tokens not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// There is nothing to prepare.
    #[error("no data source is given: name at least one under [[data.sources]]")]
    NoSources,
    /// A source's path leads nowhere.
    #[error("source `{name}`: {} does not exist", path.display())]
    SourceMissing {
        /// Name of the source.
        name: String,
        /// What was looked for.
        path: PathBuf,
    },
    /// A source's directory holds nothing to read.
    #[error("source `{name}`: directory {} holds no file whose name ends in .{extension}", path.display())]
    NoFiles {
        /// Name of the source.
        name: String,
        /// The directory.
        path: PathBuf,
        /// How names of its files end.
        extension: &'static str,
    },
    /// A file has no text.
    #[error("{} holds no text: it is empty or only white space", path.display())]
    EmptyText {
        /// The file.
        path: PathBuf,
    },
    /// A file is not UTF-8.
    #[error("{} is not UTF-8: invalid byte {byte:#04x} at byte offset {offset}, line {line}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first byte that does not fit, or that begins a character which is cut off.
        byte: u8,
        /// Its position, 0-based.
        offset: u64,
        /// Its line, 1-based.
        line: u64,
    },
    /// A file is not what it was when its content was hashed.
    #[error("{} changed while it was being read: start again once it is complete", path.display())]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// Every position separates documents.
    #[error(
        "source `{name}`: document_separator is empty; leave it out to make each file one document"
    )]
    EmptySeparator {
        /// Name of the source.
        name: String,
    },
    /// The held-out share is no share.
    #[error("validation_fraction is {0}: it must be at least 0 and less than 1")]
    ValidationFraction(f64),
    /// A vocabulary cannot hold what every byte-level vocabulary holds.
    #[error(
        "vocab_size is {asked}: it must be at least {least}, the 256 bytes and {}",
        crate::END_OF_TEXT
    )]
    VocabularyTooSmall {
        /// What was asked for.
        asked: usize,
        /// The smallest that works.
        least: usize,
    },
    /// A tokenizer could not be read, or failed on a text.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// What the tokenizer says.
        reason: String,
    },
    /// A vocabulary could not be trained.
    #[error("training the vocabulary: {0}")]
    TokenizerTraining(String),
    /// A tokenizer has no token that ends a document.
    #[error(
        "tokenizer {} has no end-of-text token: looked for {}; name one as eos_token in tokenizer_config.json beside it",
        path.display(),
        looked_for.join(", ")
    )]
    NoEndOfText {
        /// Its file.
        path: PathBuf,
        /// Names of tokens that would do.
        looked_for: &'static [&'static str],
    },
    /// A line is no example, or none that can be learned.
    #[error("{}:{line}: {reason}", path.display())]
    Example {
        /// The file.
        path: PathBuf,
        /// Its line, 1-based.
        line: usize,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Held-out examples must have other prompts than those that are learned.
    #[error(
        "source `{name}`: none of its {examples} examples can be held out for validation, because {}: add examples",
        if *examples == 1 { "there is no other" } else { "holding out a prompt with all its completions would leave none to learn" }
    )]
    NothingToHoldOut {
        /// Name of the source.
        name: String,
        /// How many it has.
        examples: usize,
    },
    /// All examples are longer than a sequence.
    #[error(
        "source `{name}`: all {examples} examples to learn are longer than a sequence of {} tokens: raise data.seq_len, or set too_long = \"truncate\"",
        seq_len + 1
    )]
    NothingFits {
        /// Name of the source.
        name: String,
        /// How many there are.
        examples: u64,
        /// Targets in a sequence.
        seq_len: usize,
    },
    /// Examples were packed into sequences of another length.
    #[error(
        "source `{name}` was packed into sequences of {packed}, not of {seq_len}: prepare it again"
    )]
    PackedOtherwise {
        /// Name of the source.
        name: String,
        /// Targets in its sequences.
        packed: usize,
        /// Targets in the sequences that are asked for.
        seq_len: usize,
    },
    /// A prepared corpus is incomplete or not what was written.
    #[error("prepared corpus {} is damaged: {reason}; prepare it again", entry.display())]
    Damaged {
        /// Its directory.
        entry: PathBuf,
        /// The file and what is wrong with it.
        reason: String,
    },
    /// Tokens cannot be read.
    #[error("{}: reading {bytes} bytes at offset {offset}: {source}", path.display())]
    Read {
        /// The shard.
        path: PathBuf,
        /// Where reading began.
        offset: u64,
        /// How much was wanted.
        bytes: usize,
        /// What the system says.
        source: io::Error,
    },
    /// A shard holds a number that is no token.
    #[error("{}: token {token} at position {position} is outside the vocabulary of {vocab_size}", path.display())]
    TokenOutOfRange {
        /// The shard.
        path: PathBuf,
        /// The number.
        token: u32,
        /// Its position in the shard, in tokens.
        position: u64,
        /// Numbers below this are tokens.
        vocab_size: usize,
    },
    /// A source cannot fill one sequence.
    #[error(
        "source `{name}` has {tokens} training tokens, fewer than the {} of one sequence (seq_len {seq_len} and the token after it): \
         shorten seq_len or add text",
        seq_len + 1
    )]
    SourceTooShort {
        /// Name of the source.
        name: String,
        /// Tokens in its training split.
        tokens: u64,
        /// Targets in a sequence.
        seq_len: usize,
    },
    /// Sequences without tokens.
    #[error("seq_len is 0: a sequence needs at least one target")]
    ZeroSeqLen,
    /// Sources cannot be mixed in such shares.
    #[error("weights of the sources are {weights:?}: {expected}")]
    Weights {
        /// As given.
        weights: Vec<f64>,
        /// What they should be.
        expected: &'static str,
    },
    /// A validation window that does not exist was asked for.
    #[error(
        "validation windows {start}..{end} of source {source_index} were asked for, but it has {windows}"
    )]
    NoSuchWindow {
        /// Index of the source.
        source_index: usize,
        /// First window asked for.
        start: u64,
        /// End of the range asked for.
        end: u64,
        /// Windows of that source; 0 if there is no such source.
        windows: u64,
    },
    /// The reading thread is gone.
    #[error("the thread that reads batches ahead stopped without saying why: {0}")]
    PrefetchDied(String),
    /// A file or directory could not be used; the message names it.
    #[error(transparent)]
    Io(#[from] io::Error),
}
