//! The way of a source of examples into a cache entry: which are held out, what is too long, tokens,
//! rows.

use std::path::Path;

use cordee_config::TooLong;
use rayon::prelude::*;

use crate::encode::{Encoded, Encoder};
use crate::example::Example;
use crate::manifest::{Packed, Source};
use crate::packed::PackWriter;
use crate::prepare::Stage;
use crate::spec::{hex, source_hash};
use crate::text::{HashedFile, SourceFiles, read_text};
use crate::{DataError, ExampleKeys};

/// Lines between two reports of progress; bounds what is held in memory.
const REPORT: usize = 1 << 14;

/// A source of examples and which of them are held out.
pub(crate) struct ExampleSource<'a> {
    source: &'a SourceFiles,
    keys: &'a ExampleKeys,
    too_long: TooLong,
    /// Examples whose prompt hashes to at most this are held out.
    held_out: Option<u64>,
    /// Bytes of all files.
    pub(crate) bytes: u64,
}

/// An example on its way to a row.
struct Ready {
    encoded: Encoded,
    held_out: bool,
    /// Bytes of its texts.
    bytes: u64,
    /// Whether a text spells a special token, which is read as plain text.
    spells_special: bool,
}

impl<'a> ExampleSource<'a> {
    /// Reads the source once to see that every line is an example, and how prompts hash.
    pub(crate) fn new(
        source: &'a SourceFiles,
        keys: &'a ExampleKeys,
        too_long: TooLong,
        fraction: f64,
    ) -> Result<Self, DataError> {
        let mut hashes = Vec::new();
        for file in &source.files {
            let text = read_text(file)?;
            let read = lines(&text).into_par_iter().map(|(number, line)| {
                let example = keys.read(line).map_err(|reason| at(file, number, reason))?;
                Ok(example.prompt_hash())
            });
            // Not straight into a result: of several errors the first is wanted.
            let read: Vec<Result<u64, DataError>> = read.collect();
            for hash in read {
                hashes.push(hash?);
            }
        }
        let examples = hashes.len();
        let held_out = if fraction > 0.0 {
            let nothing = || DataError::NothingToHoldOut {
                name: source.name.clone(),
                examples,
            };
            Some(held_out(hashes, fraction).ok_or_else(nothing)?)
        } else {
            None
        };
        Ok(Self {
            source,
            keys,
            too_long,
            held_out,
            bytes: source.files.iter().map(|file| file.bytes).sum(),
        })
    }

    pub(crate) fn files(&self) -> usize {
        self.source.files.len()
    }

    /// The texts of a file's examples that are learned, for counting words.
    pub(crate) fn training_pieces(&self, file: usize) -> Result<Vec<String>, DataError> {
        let file = &self.source.files[file];
        let mut pieces = Vec::new();
        for (number, line) in lines(&read_text(file)?) {
            let example = self.read(file, number, line)?;
            if !self.is_held_out(&example) {
                pieces.extend(example.texts().into_iter().map(str::to_owned));
            }
        }
        Ok(pieces)
    }

    /// Writes the rows of both splits.
    pub(crate) fn tokenize(
        &self,
        index: usize,
        encoder: &Encoder<'_>,
        seq_len: usize,
        dir: &Path,
        progress: &mut dyn FnMut(Stage),
    ) -> Result<Source, DataError> {
        let tokenizer = encoder.tokenizer();
        let create =
            |split| PackWriter::create(dir, &format!("{index:03}-{split}"), tokenizer, seq_len);
        let (mut train, mut validation) = (create("train")?, create("validation")?);
        let mut done = 0;
        for file in &self.source.files {
            let text = read_text(file)?;
            for group in lines(&text).chunks(REPORT) {
                progress(Stage::Tokenizing {
                    source: self.source.name.clone(),
                    done,
                    total: self.bytes,
                });
                let ready: Vec<_> = group
                    .par_iter()
                    .map(|&(number, line)| self.ready(file, number, line, encoder))
                    .collect();
                for (&(number, line), ready) in group.iter().zip(ready) {
                    let mut ready = ready?;
                    let split = if ready.held_out {
                        &mut validation
                    } else {
                        &mut train
                    };
                    let packed = split.packed_mut();
                    packed.spell_special += u64::from(ready.spells_special);
                    let fits = self.fit(&mut ready.encoded, packed);
                    if fits.map_err(|reason| at(file, number, reason))? {
                        split.push(ready.encoded, ready.bytes)?;
                    }
                    done += line.len() as u64 + 1;
                }
            }
        }
        let source = Source {
            name: self.source.name.clone(),
            sha256: hex(&source_hash(self.source)),
            train: train.finish()?,
            validation: validation.finish()?,
        };
        match &source.train.packed {
            Some(packed) if packed.rows == 0 => Err(DataError::NothingFits {
                name: source.name.clone(),
                examples: packed.left_out,
                seq_len,
            }),
            _ => Ok(source),
        }
    }
}

impl ExampleSource<'_> {
    fn read(&self, file: &HashedFile, number: usize, line: &str) -> Result<Example, DataError> {
        self.keys
            .read(line)
            .map_err(|reason| at(file, number, reason))
    }

    fn is_held_out(&self, example: &Example) -> bool {
        self.held_out
            .is_some_and(|most| example.prompt_hash() <= most)
    }

    fn ready(
        &self,
        file: &HashedFile,
        number: usize,
        line: &str,
        encoder: &Encoder<'_>,
    ) -> Result<Ready, DataError> {
        let example = self.read(file, number, line)?;
        let encoded = encoder
            .encode(&example)
            .map_err(|reason| at(file, number, reason))?;
        let texts = example.texts();
        let spelled = |text: &&str| encoder.tokenizer().special_token_in(text).is_some();
        Ok(Ready {
            encoded,
            held_out: self.is_held_out(&example),
            bytes: texts.iter().map(|text| text.len() as u64).sum(),
            spells_special: texts.iter().any(spelled),
        })
    }

    /// Makes an example fit into a row, or counts it as left out. Returns whether it is used; why it
    /// cannot be.
    fn fit(&self, example: &mut Encoded, packed: &mut Packed) -> Result<bool, String> {
        let room = packed.seq_len + 1;
        let tokens = example.ids.len();
        if tokens <= room {
            return Ok(true);
        }
        match self.too_long {
            TooLong::Skip => {
                packed.left_out += 1;
                Ok(false)
            }
            TooLong::Error => Err(format!(
                "it has {tokens} tokens, and a sequence holds {room} (data.seq_len + 1): shorten it, raise data.seq_len, or set too_long = \"skip\" or \"truncate\""
            )),
            TooLong::Truncate => {
                example.truncate(room);
                packed.truncated += 1;
                if example.is_learned() {
                    return Ok(true);
                }
                Err(format!(
                    "cut to the {room} tokens that a sequence holds (of {tokens}), it has nothing left to learn: shorten its prompt, raise data.seq_len, or set too_long = \"skip\""
                ))
            }
        }
    }
}

/// The lines of a file that are not blank, with their numbers.
fn lines(text: &str) -> Vec<(usize, &str)> {
    // Some editors put a byte order mark first, which JSON does not know.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let numbered = text.lines().enumerate();
    numbered
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim().is_empty())
        .collect()
}

/// The largest hash that is held out, so that those up to it are about `fraction` of all, at least one
/// and not all; `None` if that cannot be.
fn held_out(mut hashes: Vec<u64>, fraction: f64) -> Option<u64> {
    hashes.sort_unstable();
    let share = (hashes.len() as f64 * fraction).round() as usize;
    let most = hashes[share.clamp(1, hashes.len()) - 1];
    (hashes.last() > Some(&most)).then_some(most)
}

fn at(file: &HashedFile, line: usize, reason: String) -> DataError {
    DataError::Example {
        path: file.path.clone(),
        line,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_hashes_are_held_out() {
        let hashes: Vec<u64> = (0..100).rev().collect();
        assert_eq!(held_out(hashes.clone(), 0.05), Some(4));
        assert_eq!(held_out(hashes, 1e-6), Some(0));
        // Equal prompts stay together.
        assert_eq!(held_out(vec![1, 1, 1, 2], 0.25), Some(1));
        assert_eq!(held_out(vec![7; 9], 0.1), None);
        assert_eq!(held_out(vec![7], 0.1), None);
        assert_eq!(held_out(vec![3, 7], 0.999), None);
    }

    #[test]
    fn lines_keep_their_numbers() {
        assert_eq!(lines("\u{feff}a\r\n\n b\n"), [(1, "a"), (3, " b")]);
    }
}
