//! Fills a cache entry: splits text, trains a vocabulary where none is given, tokenises, writes the
//! manifest last.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use fs_err as fs;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::companions::Companions;
use crate::encode::Encoder;
use crate::examples::ExampleSource;
use crate::held_out::{self, Cut, Tail};
use crate::manifest::{FileEntry, MANIFEST, Manifest, Source, TOKENIZER, TOKENIZER_CONFIG};
use crate::prepare::Stage;
use crate::spec::{FORMAT_VERSION, Vocabulary, hex, source_hash};
use crate::split::SplitWriter;
use crate::text::{HashedFile, SourceFiles, documents, read_text};
use crate::{DataError, Format, PrepareSpec, Tokenizer, tokenizer};

/// Bytes of text between two reports of progress; bounds the ids held in memory.
const REPORT: usize = 8 << 20;

/// The files that a corpus is made from.
pub(crate) struct Inputs {
    pub(crate) sources: Vec<SourceFiles>,
    pub(crate) tokenizer: Option<GivenTokenizer>,
}

/// A tokenizer that is not trained here.
pub(crate) struct GivenTokenizer {
    pub(crate) file: HashedFile,
    pub(crate) companions: Companions,
}

/// A source and what of it is held out.
enum SplitSource<'a> {
    Text(TextSource<'a>),
    Examples(ExampleSource<'a>),
}

/// A source of text and where its held-out part begins.
struct TextSource<'a> {
    source: &'a SourceFiles,
    separator: Option<&'a str>,
    /// For each file, the index of its first document within the source.
    first_documents: Vec<usize>,
    cut: Cut,
    /// Bytes of all documents.
    bytes: u64,
}

/// A document, or one side of the document that is cut.
struct Part<'t> {
    text: &'t str,
    held_out: bool,
    begins_document: bool,
}

/// What is tokenised at once.
struct Piece<'t> {
    text: &'t str,
    held_out: bool,
    begins_document: bool,
    ends_document: bool,
}

/// Writes a whole entry into `dir`.
pub(crate) fn build(
    spec: &PrepareSpec,
    inputs: &Inputs,
    fingerprint: &str,
    dir: &Path,
    progress: &mut dyn FnMut(Stage),
) -> Result<(), DataError> {
    let mut sources = Vec::new();
    for source in &inputs.sources {
        progress(Stage::Splitting {
            source: source.name.clone(),
        });
        sources.push(SplitSource::new(source, spec.validation_fraction)?);
    }
    let json = tokenizer_json(spec, inputs, &sources, progress)?;
    let copy = dir.join(TOKENIZER);
    write_synced(&copy, &json)?;
    let (companions, path) = match &inputs.tokenizer {
        Some(given) => (given.companions.clone(), &given.file.path),
        None => (Companions::default(), &copy),
    };
    let tokenizer = Tokenizer::from_json(&json, path, &companions)?;
    let config = tokenizer.config_json(companions.chat_template.as_deref());
    write_synced(&dir.join(TOKENIZER_CONFIG), &config)?;
    if let Vocabulary::Train(asked) = spec.vocabulary {
        progress(Stage::TrainedVocabulary {
            vocab_size: tokenizer.vocab_size(),
            asked,
        });
    }
    let encoder = Encoder::new(&tokenizer, &companions);
    let mut entries = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        entries.push(match source {
            SplitSource::Text(text) => tokenize(text, index, &tokenizer, dir, progress)?,
            SplitSource::Examples(examples) => {
                examples.tokenize(index, &encoder, spec.seq_len, dir, progress)?
            }
        });
    }
    let manifest = Manifest {
        xxh3: String::new(),
        format_version: FORMAT_VERSION,
        fingerprint: fingerprint.to_owned(),
        tokenizer_sha256: hex(&Sha256::digest(&json)),
        vocab_size: tokenizer.vocab_size(),
        end_of_text: tokenizer.end_of_text(),
        sources: entries,
        files: written_files(dir)?,
    };
    write_synced(&dir.join(MANIFEST), &manifest.to_bytes())
}

impl<'a> SplitSource<'a> {
    /// Reads the source once to see what can be held out.
    fn new(source: &'a SourceFiles, fraction: f64) -> Result<Self, DataError> {
        Ok(match &source.format {
            Format::Text { separator } => {
                Self::Text(TextSource::new(source, separator.as_deref(), fraction)?)
            }
            Format::Examples { keys, too_long } => {
                Self::Examples(ExampleSource::new(source, keys, *too_long, fraction)?)
            }
        })
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Text(text) => text.bytes,
            Self::Examples(examples) => examples.bytes,
        }
    }

    fn files(&self) -> usize {
        match self {
            Self::Text(text) => text.source.files.len(),
            Self::Examples(examples) => examples.files(),
        }
    }

    /// The pieces of what is trained on in a file, for counting words.
    fn training_pieces(&self, file: usize) -> Result<Vec<String>, DataError> {
        match self {
            Self::Text(text) => text.training_pieces(file),
            Self::Examples(examples) => examples.training_pieces(file),
        }
    }
}

impl<'a> TextSource<'a> {
    /// Reads the source once to see how long its documents are.
    fn new(
        source: &'a SourceFiles,
        separator: Option<&'a str>,
        fraction: f64,
    ) -> Result<Self, DataError> {
        let mut lengths = Vec::new();
        let mut first_documents = Vec::new();
        for file in &source.files {
            first_documents.push(lengths.len());
            let text = read_text(file)?;
            lengths.extend(
                documents(&text, separator)
                    .iter()
                    .map(|document| document.len() as u64),
            );
        }
        let bytes = lengths.iter().sum();
        let mut split = Self {
            source,
            separator,
            first_documents,
            cut: Cut {
                document: 0,
                byte: 0,
            },
            bytes,
        };
        split.cut = match held_out::tail(&lengths, fraction) {
            Tail::Documents(document) => Cut { document, byte: 0 },
            Tail::Inside { document, held_out } => split.cut_inside(document, held_out)?,
        };
        Ok(split)
    }

    fn cut_inside(&self, document: usize, held_out: u64) -> Result<Cut, DataError> {
        let file = self
            .first_documents
            .partition_point(|&first| first <= document)
            - 1;
        let text = read_text(&self.source.files[file])?;
        let documents = documents(&text, self.separator);
        let whole = documents[document - self.first_documents[file]];
        let byte = held_out::byte_to_cut(whole, held_out);
        // A document of one character has no inside.
        let end = byte == whole.len();
        Ok(if end {
            Cut {
                document: document + 1,
                byte: 0,
            }
        } else {
            Cut { document, byte }
        })
    }

    /// The documents of a file, each on its side of the cut.
    fn parts<'t>(&self, file: usize, text: &'t str) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let documents = documents(text, self.separator);
        for (index, document) in documents.into_iter().enumerate() {
            let index = self.first_documents[file] + index;
            let byte = match index.cmp(&self.cut.document) {
                std::cmp::Ordering::Less => document.len(),
                std::cmp::Ordering::Equal => self.cut.byte,
                std::cmp::Ordering::Greater => 0,
            };
            let (trained, held_out) = document.split_at(byte);
            if !trained.is_empty() {
                parts.push(Part {
                    text: trained,
                    held_out: false,
                    begins_document: true,
                });
            }
            if !held_out.is_empty() {
                parts.push(Part {
                    text: held_out,
                    held_out: true,
                    begins_document: trained.is_empty(),
                });
            }
        }
        parts
    }

    /// The pieces of a file's training text, for counting words.
    fn training_pieces(&self, file: usize) -> Result<Vec<String>, DataError> {
        let text = read_text(&self.source.files[file])?;
        Ok(self
            .parts(file, &text)
            .iter()
            .filter(|part| !part.held_out)
            .flat_map(|part| tokenizer::training_pieces(part.text))
            .map(str::to_owned)
            .collect())
    }
}

/// The content of the tokenizer's file: as given, or trained.
fn tokenizer_json(
    spec: &PrepareSpec,
    inputs: &Inputs,
    sources: &[SplitSource<'_>],
    progress: &mut dyn FnMut(Stage),
) -> Result<Vec<u8>, DataError> {
    let vocab_size = match (&spec.vocabulary, &inputs.tokenizer) {
        (Vocabulary::Train(vocab_size), _) => *vocab_size,
        (Vocabulary::File(_), Some(GivenTokenizer { file, .. })) => {
            let json = fs::read(&file.path)?;
            if Sha256::digest(&json)[..] != file.sha256 {
                return Err(DataError::SourceChanged {
                    path: file.path.clone(),
                });
            }
            return Ok(json);
        }
        (Vocabulary::File(_), None) => {
            unreachable!("a tokenizer that is given is among the inputs")
        }
    };
    progress(Stage::TrainingVocabulary {
        vocab_size,
        bytes: sources.iter().map(SplitSource::bytes).sum(),
    });
    // The trainer takes texts, not results: the first error ends them and is raised afterwards.
    let mut failed = None;
    let texts = sources
        .iter()
        .flat_map(|source| (0..source.files()).map(move |file| source.training_pieces(file)))
        .map_while(|pieces| pieces.map_err(|error| failed = Some(error)).ok())
        .flatten();
    let trained = tokenizer::train(vocab_size, texts);
    match failed {
        Some(error) => Err(error),
        None => Ok(trained?.into_bytes()),
    }
}

/// Writes the shards of both splits of a source of text.
fn tokenize(
    source: &TextSource<'_>,
    index: usize,
    tokenizer: &Tokenizer,
    dir: &Path,
    progress: &mut dyn FnMut(Stage),
) -> Result<Source, DataError> {
    let mut train = SplitWriter::create(dir, &format!("{index:03}-train"), tokenizer)?;
    let mut validation = SplitWriter::create(dir, &format!("{index:03}-validation"), tokenizer)?;
    let mut done = 0;
    for (file, hashed) in source.source.files.iter().enumerate() {
        let text = read_text(hashed)?;
        let pieces = pieces(&source.parts(file, &text), tokenizer)?;
        for group in groups(&pieces) {
            progress(Stage::Tokenizing {
                source: source.source.name.clone(),
                done,
                total: source.bytes,
            });
            let ids: Vec<Vec<u32>> = group
                .par_iter()
                .map(|piece| tokenizer.encode(piece.text))
                .collect::<Result<_, _>>()?;
            for (piece, ids) in group.iter().zip(&ids) {
                let split = if piece.held_out {
                    &mut validation
                } else {
                    &mut train
                };
                let first = split.is_empty();
                if piece.begins_document {
                    split.begin_document()?;
                }
                if first && split.is_empty() {
                    split.set_first_token_bytes(tokenizer.first_token_bytes(piece.text)?);
                }
                split.push(piece.text, ids)?;
                if piece.ends_document {
                    split.end_document()?;
                }
                done += piece.text.len() as u64;
            }
        }
    }
    Ok(Source {
        name: source.source.name.clone(),
        sha256: hex(&source_hash(source.source)),
        train: train.finish()?,
        validation: validation.finish()?,
    })
}

fn pieces<'t>(parts: &[Part<'t>], tokenizer: &Tokenizer) -> Result<Vec<Piece<'t>>, DataError> {
    let mut all = Vec::new();
    for part in parts {
        let pieces = tokenizer.pieces(part.text)?;
        let last = pieces.len() - 1;
        all.extend(pieces.into_iter().enumerate().map(|(index, text)| Piece {
            text,
            held_out: part.held_out,
            begins_document: index == 0 && part.begins_document,
            ends_document: index == last,
        }));
    }
    Ok(all)
}

/// Runs of pieces of about [`REPORT`] bytes.
fn groups<'p, 't>(pieces: &'p [Piece<'t>]) -> impl Iterator<Item = &'p [Piece<'t>]> {
    let mut rest = pieces;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let count = rest.iter().take_while(|piece| {
            let takes = bytes < REPORT;
            bytes += piece.text.len();
            takes
        });
        let (group, later) = rest.split_at(count.count());
        rest = later;
        (!group.is_empty()).then_some(group)
    })
}

/// What lies in the entry, read back from the file system.
fn written_files(dir: &Path) -> Result<BTreeMap<String, FileEntry>, DataError> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry
            .file_name()
            .into_string()
            .expect("all files here were named by this module");
        files.insert(name, FileEntry::of(&entry.path())?);
    }
    Ok(files)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}
