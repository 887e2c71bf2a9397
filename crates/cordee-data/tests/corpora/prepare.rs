//! Text to a corpus: what is refused, what is written, what the cache does when it is hit, raced
//! for and damaged.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Place, contents, did_tokenize, spec, text};
use cordee_data::{
    Corpus, DataError, Format, Loader, PrepareSpec, SourceSpec, Stage, Validation, Vocabulary,
    prepare,
};

#[test]
fn every_byte_of_every_document_comes_back() {
    let place = Place::new();
    let (english, french) = (text("Dog", 200), text("Chien", 100));
    let corpus = place.corpus(&spec(vec![
        place.source("en", &english),
        place.source("fr", &french),
    ]));
    let tokenizer = corpus.tokenizer().unwrap();
    for (source, original) in corpus.sources().iter().zip([&english, &french]) {
        let validation = &source.validation;
        let share = validation.bytes as f64 / (source.train.bytes + validation.bytes) as f64;
        assert!((share - 0.1).abs() < 0.02, "{share}");
        let documents: Vec<&str> = original.split("\n\n").collect();
        assert_eq!(
            source.train.documents + validation.documents,
            documents.len() as u64
        );
        let held_out = &documents[source.train.documents as usize..];
        assert_eq!(
            held_out.iter().map(|text| text.len() as u64).sum::<u64>(),
            validation.bytes
        );
        let ends = corpus.document_ends(validation).unwrap();
        assert_eq!(ends.len(), held_out.len());
        assert_eq!(ends.last(), Some(&validation.tokens));
    }
    let held_out = Validation::new(&corpus, 50).unwrap();
    let batch = held_out.read(1, 0..held_out.windows(1)).unwrap();
    let mut tokens = vec![batch.tokens[0]];
    let targets = (0..batch.rows).flat_map(|row| &batch.row(row)[1..]);
    let counted = targets
        .zip(batch.loss_mask.as_ref().unwrap())
        .filter(|&(_, &counts)| counts == 1);
    tokens.extend(counted.map(|(&token, _)| token));
    let first_held_out = corpus.sources()[1].train.documents as usize;
    let held_out: Vec<&str> = french.split("\n\n").skip(first_held_out).collect();
    let expected = held_out.join("<|endoftext|>") + "<|endoftext|>";
    assert_eq!(tokenizer.decode(&tokens).unwrap(), expected);
}

#[test]
fn preparing_twice_gives_the_same_bytes() {
    let place = Place::new();
    let other = Place::new();
    let make = |place: &Place| {
        spec(vec![
            place.source("en", text("Dog", 300)),
            place.source("fr", text("Chien", 50)),
        ])
    };
    let one = place.corpus(&make(&place));
    let two = other.corpus(&make(&other));
    assert_eq!(one.fingerprint(), two.fingerprint());
    assert_eq!(contents(one.entry()), contents(two.entry()));
}

#[test]
fn a_single_document_is_cut_and_nothing_is_held_out_on_request() {
    let place = Place::new();
    let mut source = place.source("one", text("Dog", 40));
    source.format = Format::Text { separator: None };
    let cut = place.corpus(&spec(vec![source.clone()]));
    let split = &cut.sources()[0];
    assert_eq!((split.train.documents, split.validation.documents), (1, 1));
    let all = split.train.bytes + split.validation.bytes;
    assert_eq!(all, text("Dog", 40).len() as u64);
    assert!((split.validation.bytes as f64 / all as f64 - 0.1).abs() < 0.03);

    let whole = place.corpus(&PrepareSpec {
        validation_fraction: 0.0,
        ..spec(vec![source])
    });
    assert_eq!(whole.sources()[0].train.bytes, all);
    assert_eq!(whole.sources()[0].validation.tokens, 0);
    assert_eq!(Validation::new(&whole, 8).unwrap().windows(0), 0);
}

#[test]
fn a_directory_is_read_by_name_and_each_file_ends_a_document() {
    let place = Place::new();
    let dir = place.dir.path().join("texts");
    std::fs::create_dir(&dir).unwrap();
    for (name, content) in [
        ("b.txt", "second file"),
        ("a.txt", "first file"),
        ("notes.md", "not this"),
    ] {
        std::fs::write(dir.join(name), content).unwrap();
    }
    let source = SourceSpec {
        name: "dir".to_owned(),
        path: dir,
        format: Format::Text { separator: None },
    };
    let spec = PrepareSpec {
        validation_fraction: 0.0,
        ..spec(vec![source])
    };
    let corpus = place.corpus(&spec);
    assert_eq!(corpus.sources()[0].train.documents, 2);
    let loader = Loader::new(
        &corpus,
        corpus.sources()[0].train.tokens as usize - 1,
        0,
        None,
    )
    .unwrap();
    let read = corpus
        .tokenizer()
        .unwrap()
        .decode(&loader.read(0..1).unwrap().tokens)
        .unwrap();
    assert_eq!(read, "first file<|endoftext|>second file<|endoftext|>");
}

#[test]
fn the_cut_may_lie_in_any_file_of_a_directory() {
    let place = Place::new();
    let dir = place.dir.path().join("texts");
    std::fs::create_dir(&dir).unwrap();
    let files = [
        ("a.txt", text("One", 5)),
        ("b.txt", text("Two", 60)),
        ("c.txt", text("Six", 1)),
    ];
    for (name, content) in &files {
        std::fs::write(dir.join(name), content).unwrap();
    }
    let source = SourceSpec {
        name: "dir".to_owned(),
        path: dir,
        format: Format::Text { separator: None },
    };
    let corpus = place.corpus(&spec(vec![source]));
    let split = &corpus.sources()[0];
    let read = |tokens: Vec<u32>| corpus.tokenizer().unwrap().decode(&tokens).unwrap();
    let length = split.train.tokens as usize - 1;
    let trained = Loader::new(&corpus, length, 0, None)
        .unwrap()
        .read(0..1)
        .unwrap();
    let length = split.validation.tokens as usize - 1;
    let held_out = Validation::new(&corpus, length)
        .unwrap()
        .read(0, 0..1)
        .unwrap();
    // The second file is cut: its halves are a document each.
    assert_eq!((split.train.documents, split.validation.documents), (2, 2));
    let share = split.validation.bytes as f64 / (split.train.bytes + split.validation.bytes) as f64;
    assert!((share - 0.1).abs() < 0.03, "{share}");
    let joined = read(trained.tokens) + &read(held_out.tokens);
    let all: String = files.into_iter().map(|(_, content)| content).collect();
    assert_eq!(joined.replace("<|endoftext|>", ""), all);
}

#[test]
fn text_that_cannot_be_read_is_named() {
    let place = Place::new();
    let fails = |source: SourceSpec| place.prepare(&spec(vec![source])).0.unwrap_err();
    assert!(
        matches!(fails(place.source("empty", "")), DataError::EmptyText { path } if path.ends_with("empty.txt"))
    );
    assert!(matches!(
        fails(place.source("blank", " \n \n\n")),
        DataError::EmptyText { .. }
    ));
    let bad = fails(place.source("latin", b"ab\nc\xe9d"));
    assert!(
        matches!(
            bad,
            DataError::NotUtf8 {
                offset: 4,
                line: 2,
                byte: 0xe9,
                ..
            }
        ),
        "{bad}"
    );
    let mut missing = place.source("gone", "x");
    missing.path = place.dir.path().join("nowhere.txt");
    assert!(matches!(fails(missing), DataError::SourceMissing { name, .. } if name == "gone"));
    // Nothing half-made is left behind.
    for (name, _) in contents_of_files(&place.cache()) {
        assert!(!name.starts_with(".tmp"), "{name}");
    }
}

fn contents_of_files(dir: &Path) -> Vec<(String, bool)> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                entry.path().is_dir(),
            )
        })
        .collect()
}

#[test]
fn the_second_time_nothing_is_done() {
    let place = Place::new();
    let spec = spec(vec![place.source("en", text("Dog", 100))]);
    let (first, stages) = place.prepare(&spec);
    assert!(did_tokenize(&stages));
    let (second, stages) = place.prepare(&spec);
    assert!(
        matches!(stages.last(), Some(Stage::Cached { entry }) if entry == second.unwrap().entry())
    );
    assert!(!did_tokenize(&stages));
    // Content is the key: the same text elsewhere is the same corpus, other text or settings are
    // not.
    let moved = place.source("moved", text("Dog", 100));
    let mut same = spec.clone();
    same.sources[0].path = moved.path;
    assert!(!did_tokenize(&place.prepare(&same).1));
    place.source("en", text("Dot", 100));
    let (changed, stages) = place.prepare(&spec);
    assert!(did_tokenize(&stages));
    assert_ne!(changed.unwrap().fingerprint(), first.unwrap().fingerprint());
    assert!(did_tokenize(
        &place
            .prepare(&PrepareSpec {
                vocabulary: Vocabulary::Train(300),
                ..spec
            })
            .1
    ));
}

#[test]
fn a_warm_start_is_quick() {
    let place = Place::new();
    let spec = spec(vec![
        place.source("en", text("Dog", 9000)),
        place.source("fr", text("Chien", 9000)),
    ]);
    place.corpus(&spec);
    std::thread::sleep(Duration::from_millis(2100));
    place.corpus(&spec);
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            let (corpus, stages) = place.prepare(&spec);
            assert!(corpus.is_ok());
            assert_eq!(stages.len(), 1, "{stages:?}");
            start.elapsed()
        })
        .min()
        .unwrap();
    println!("warm prepare: {best:?}");
    assert!(best < Duration::from_millis(15), "{best:?}");
}

#[test]
fn racing_threads_end_with_one_corpus() {
    let place = Place::new();
    let spec = spec(vec![place.source("en", text("Dog", 500))]);
    let outcomes: Vec<(Corpus, Vec<Stage>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (corpus, stages) = place.prepare(&spec);
                    (corpus.unwrap(), stages)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(
        outcomes
            .iter()
            .filter(|(_, stages)| did_tokenize(stages))
            .count(),
        1
    );
    for (corpus, _) in &outcomes {
        corpus.verify().unwrap();
        assert_eq!(corpus.entry(), outcomes[0].0.entry());
    }
    let leftovers = contents_of_files(&place.cache());
    assert_eq!(
        leftovers.iter().filter(|(_, is_dir)| *is_dir).count(),
        1,
        "{leftovers:?}"
    );
}

/// Damages the entry, prepares again, and expects the damage to be named and mended.
fn is_mended(verify: bool, named: &str, damage: impl FnOnce(&Path)) {
    let place = Place::new();
    let spec = PrepareSpec {
        verify,
        ..spec(vec![place.source("en", text("Dog", 100))])
    };
    let good = place.corpus(&spec);
    let before = contents(good.entry());
    damage(good.entry());
    let (mended, stages) = place.prepare(&spec);
    let told = stages.iter().find_map(|stage| match stage {
        Stage::Damaged {
            reason, moved_to, ..
        } => Some((reason, moved_to)),
        _ => None,
    });
    let (reason, moved_to) = told.unwrap_or_else(|| panic!("not noticed: {named}"));
    assert!(reason.contains(named), "{reason}");
    assert!(moved_to.is_dir());
    assert_eq!(contents(mended.unwrap().entry()), before);
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_entries_are_set_aside_and_made_again() {
    is_mended(false, "000-train-00000.bin has 1030 bytes", |entry| {
        let shard = std::fs::File::options()
            .write(true)
            .open(entry.join("000-train-00000.bin"))
            .unwrap();
        shard.set_len(1030).unwrap();
    });
    is_mended(false, "000-validation.ends", |entry| {
        std::fs::remove_file(entry.join("000-validation.ends")).unwrap();
    });
    is_mended(false, "manifest.json", |entry| {
        std::fs::remove_file(entry.join("manifest.json")).unwrap();
    });
    is_mended(false, "manifest.json does not match", |entry| {
        flip(&entry.join("manifest.json"), 400);
    });
    is_mended(true, "000-train-00000.bin does not match", |entry| {
        flip(&entry.join("000-train-00000.bin"), 1500);
    });
    is_mended(true, "tokenizer.json does not match", |entry| {
        flip(&entry.join("tokenizer.json"), 99);
    });
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let place = Place::new();
    let spec = spec(vec![place.source("en", text("Dog", 100))]);
    let entry = place.corpus(&spec).entry().to_owned();
    let left = place.cache().join(format!(
        ".tmp-{}-1-2-3",
        entry.file_name().unwrap().to_str().unwrap()
    ));
    std::fs::rename(&entry, &left).unwrap();
    std::fs::remove_file(left.join("manifest.json")).unwrap();
    assert!(did_tokenize(&place.prepare(&spec).1));
    assert!(!left.exists());
}

#[test]
fn a_given_tokenizer_is_used_and_copied() {
    let place = Place::new();
    let made = place.corpus(&spec(vec![place.source("en", text("Dog", 100))]));
    let given = place.dir.path().join("given.json");
    std::fs::copy(made.tokenizer_path(), &given).unwrap();
    let spec = PrepareSpec {
        vocabulary: Vocabulary::File(given.clone()),
        ..spec(vec![place.source("fr", text("Chien", 100))])
    };
    let (corpus, stages) = place.prepare(&spec);
    let corpus = corpus.unwrap();
    assert!(
        !stages
            .iter()
            .any(|stage| matches!(stage, Stage::TrainingVocabulary { .. }))
    );
    assert_eq!(
        std::fs::read(corpus.tokenizer_path()).unwrap(),
        std::fs::read(&given).unwrap()
    );
    assert_eq!(corpus.tokenizer_sha256(), made.tokenizer_sha256());
    std::fs::write(&given, "{}").unwrap();
    let error = place.prepare(&spec).0.unwrap_err();
    assert!(matches!(error, DataError::Tokenizer { .. }), "{error}");
}

#[test]
fn small_texts_get_small_vocabularies_and_say_so() {
    let place = Place::new();
    let (corpus, stages) = place.prepare(&spec(vec![place.source("en", "to be or not to be")]));
    let vocab_size = corpus.unwrap().vocab_size();
    assert!(vocab_size < 400);
    assert!(stages.contains(&Stage::TrainedVocabulary {
        vocab_size,
        asked: 400
    }));
}

/// The texts that come with the repository: run with `--release --ignored --nocapture` for figures.
#[test]
#[ignore = "takes seconds; prints figures of the texts in data/"]
fn figures_of_the_shipped_texts() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
    let place = Place::new();
    let source = |name: &str, file: &str| SourceSpec {
        name: name.to_owned(),
        path: data.join(file),
        format: Format::Text {
            separator: Some("\n\n".to_owned()),
        },
    };
    let spec = PrepareSpec {
        sources: vec![
            source("english", "sotu.en.txt"),
            source("french", "littre.fr.txt"),
        ],
        vocabulary: Vocabulary::Train(2048),
        validation_fraction: 0.05,
        seq_len: 32,
        verify: false,
    };
    let start = Instant::now();
    let corpus = prepare(&spec, &place.cache(), &mut |stage| {
        println!("{:?} {stage:?}", start.elapsed());
    })
    .unwrap();
    println!("cold: {:?}", start.elapsed());
    let start = Instant::now();
    place.corpus(&spec);
    println!("warm: {:?}", start.elapsed());
    let validation = Validation::new(&corpus, 256).unwrap();
    for (index, source) in corpus.sources().iter().enumerate() {
        let (train, held_out) = (&source.train, &source.validation);
        println!(
            "{}: train {} bytes, {} tokens, {:.3} bytes per token, {} documents; held out {} bytes, {:.3} bytes per token, {} documents; \
             unigram {:.4} bits per token, {:.4} bits per byte",
            source.name,
            train.bytes,
            train.tokens,
            train.bytes as f64 / train.tokens as f64,
            train.documents,
            held_out.bytes,
            held_out.bytes as f64 / held_out.tokens as f64,
            held_out.documents,
            held_out.unigram_bits,
            validation.unigram_bits_per_byte(index).unwrap(),
        );
        assert!(held_out.unigram_bits > 0.0);
    }
}
