//! Text to a prepared corpus, from the cache where the same was prepared before.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::build::{self, GivenTokenizer, Inputs};
use crate::cache::{CacheEntry, Lookup};
use crate::companions::{Companions, tokenizer_file};
use crate::spec::{Vocabulary, fingerprint};
use crate::stat_index::StatIndex;
use crate::text::{SourceFiles, list_files};
use crate::{Corpus, DataError, PrepareSpec};

/// What [`prepare`] is doing; told before each piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A file whose content is not known yet is read.
    Hashing {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The same was prepared before: nothing is left to do.
    Cached {
        /// Its directory.
        entry: PathBuf,
    },
    /// What was prepared before cannot be used and is made again.
    Damaged {
        /// Its directory.
        entry: PathBuf,
        /// The file and what is wrong with it.
        reason: String,
        /// Where it lies now.
        moved_to: PathBuf,
    },
    /// Another process is preparing the same.
    Waiting {
        /// The directory it will write.
        entry: PathBuf,
    },
    /// The documents of a source are found and its tail is set apart.
    Splitting {
        /// Name of the source.
        source: String,
    },
    /// A vocabulary is trained.
    TrainingVocabulary {
        /// The most ids it will have.
        vocab_size: usize,
        /// Bytes of text in all sources, held-out text included.
        bytes: u64,
    },
    /// A vocabulary was trained.
    TrainedVocabulary {
        /// Ids it has.
        vocab_size: usize,
        /// Ids that were asked for: more, if the text holds no further pair twice.
        asked: usize,
    },
    /// Text becomes ids.
    Tokenizing {
        /// Name of the source.
        source: String,
        /// Bytes of it that are done.
        done: u64,
        /// Bytes of it.
        total: u64,
    },
    /// A new entry of the cache is complete.
    Prepared {
        /// Its directory.
        entry: PathBuf,
    },
}

/// Prepares a corpus in `cache_dir`, or finds it there. Processes that do so at once end with the
/// same corpus; one of them does the work.
pub fn prepare(
    spec: &PrepareSpec,
    cache_dir: &Path,
    progress: &mut dyn FnMut(Stage),
) -> Result<Corpus, DataError> {
    spec.check()?;
    fs::create_dir_all(cache_dir)?;
    let inputs = find_inputs(spec, cache_dir, progress)?;
    let tokenizer = inputs.tokenizer.as_ref();
    let tokenizer = tokenizer.map(|given| (&given.file.sha256, &given.companions));
    let fingerprint = fingerprint(&inputs.sources, tokenizer, spec);
    let cache = CacheEntry::new(cache_dir, &fingerprint);
    if let Lookup::Complete(corpus) = cache.lookup(spec.verify)? {
        progress(Stage::Cached {
            entry: cache.path(),
        });
        return Ok(corpus);
    }
    let lock = cache.lock(|| {
        progress(Stage::Waiting {
            entry: cache.path(),
        });
    })?;
    // Again, now that nobody else is changing it.
    match cache.lookup(spec.verify)? {
        Lookup::Complete(corpus) => {
            progress(Stage::Cached {
                entry: cache.path(),
            });
            return Ok(corpus);
        }
        Lookup::Damaged(reason) => {
            let moved_to = cache.set_aside()?;
            progress(Stage::Damaged {
                entry: cache.path(),
                reason,
                moved_to,
            });
        }
        Lookup::Absent => {}
    }
    if lock.is_some() {
        cache.sweep()?;
    }
    let staging = cache.stage()?;
    build::build(spec, &inputs, &fingerprint, staging.path(), progress)?;
    let corpus = cache.commit(&staging)?;
    progress(Stage::Prepared {
        entry: cache.path(),
    });
    Ok(corpus)
}

/// Finds every file and the hash of its content.
fn find_inputs(
    spec: &PrepareSpec,
    cache_dir: &Path,
    progress: &mut dyn FnMut(Stage),
) -> Result<Inputs, DataError> {
    let mut index = StatIndex::load(cache_dir);
    let mut hash = |path: &Path| {
        index.hash(path, |bytes| {
            progress(Stage::Hashing {
                path: path.to_owned(),
                bytes,
            });
        })
    };
    let mut sources = Vec::new();
    for source in &spec.sources {
        let mut files = Vec::new();
        for path in list_files(&source.name, &source.path, &source.format)? {
            let file = hash(&path)?;
            if file.bytes == 0 {
                return Err(DataError::EmptyText { path });
            }
            files.push(file);
        }
        sources.push(SourceFiles {
            name: source.name.clone(),
            format: source.format.clone(),
            files,
        });
    }
    let tokenizer = match &spec.vocabulary {
        Vocabulary::File(path) => {
            let path = tokenizer_file(path);
            Some(GivenTokenizer {
                file: hash(&path)?,
                companions: Companions::beside(&path)?,
            })
        }
        Vocabulary::Train(_) => None,
    };
    index.save();
    Ok(Inputs { sources, tokenizer })
}
