//! Batches of a corpus: windows, order, prefetch, validation.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Place, spec, text};
use cordee_data::{
    BatchShape, Corpus, DataError, Format, Loader, Prefetch, PrepareSpec, SourceSpec, Validation,
    samples_for,
};

fn two_sources() -> (Place, Corpus) {
    let place = Place::new();
    let corpus = place.corpus(&spec(vec![
        place.source("en", text("Dog", 300)),
        place.source("fr", text("Chien", 100)),
    ]));
    (place, corpus)
}

/// All training tokens of a source, read from its shard as llm.c would.
fn training_tokens(corpus: &Corpus, source: usize) -> Vec<u32> {
    let bytes = std::fs::read(corpus.entry().join(format!("{source:03}-train-00000.bin"))).unwrap();
    let field = |at: usize| i32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
    assert_eq!((field(0), field(1)), (20_240_520, 1));
    assert_eq!(bytes.len(), 1024 + 2 * field(2) as usize);
    bytes[1024..]
        .chunks(2)
        .map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]])))
        .collect()
}

#[test]
fn rows_are_windows_of_the_tokens() {
    let (_place, corpus) = two_sources();
    let tokens = [training_tokens(&corpus, 0), training_tokens(&corpus, 1)];
    for seq_len in [1, 16, 33] {
        let loader = Loader::new(&corpus, seq_len, 7, None).unwrap();
        let total: u64 = loader.windows().iter().sum();
        let batch = loader.read(0..total).unwrap();
        assert_eq!(
            (batch.rows, batch.seq_len, &batch.loss_mask),
            (total as usize, seq_len, &None)
        );
        for row in 0..batch.rows {
            let sample = loader.order().sample(row as u64);
            assert_eq!(usize::from(batch.sources[row]), sample.source);
            let start = sample.window as usize * seq_len;
            assert_eq!(
                batch.row(row),
                &tokens[sample.source][start..=start + seq_len]
            );
        }
        for (source, &windows) in loader.windows().iter().enumerate() {
            assert_eq!(windows as usize, (tokens[source].len() - 1) / seq_len);
        }
    }
}

#[test]
fn ranks_read_the_same_stream_at_every_world_size() {
    let (_place, corpus) = two_sources();
    let loader = Loader::new(&corpus, 16, 7, Some(&[0.3, 0.7])).unwrap();
    let stream = |world: usize, micro_batch: usize| -> Vec<u32> {
        let shape = BatchShape {
            global_batch: 12,
            micro_batch,
            world,
        };
        let mut tokens = Vec::new();
        for step in 0..20 {
            for rank in 0..world {
                for micro in 0..shape.micro_batches() {
                    let samples = samples_for(step, micro, rank, &shape);
                    tokens.extend(loader.read(samples).unwrap().tokens);
                }
            }
        }
        tokens
    };
    let alone = stream(1, 12);
    for (world, micro_batch) in [(1, 4), (2, 6), (3, 3), (4, 2), (5, 2), (6, 1), (12, 1)] {
        assert_eq!(stream(world, micro_batch), alone, "{world} ranks");
    }
}

#[test]
fn seeds_and_weights_change_the_order() {
    let (_place, corpus) = two_sources();
    let read = |seed: u64, weights: Option<&[f64]>| {
        Loader::new(&corpus, 16, seed, weights)
            .unwrap()
            .read(0..64)
            .unwrap()
    };
    assert_eq!(read(1, None), read(1, None));
    assert_ne!(read(1, None), read(2, None));
    let french =
        |batch: &cordee_data::Batch| batch.sources.iter().filter(|&&source| source == 1).count();
    assert!((14..=18).contains(&french(&read(1, Some(&[3.0, 1.0])))));
    assert_eq!(french(&read(1, Some(&[0.0, 1.0]))), 64);
}

#[test]
fn a_source_shorter_than_a_sequence_is_an_error_with_counts() {
    let place = Place::new();
    let spec = spec(vec![
        place.source("long", text("Dog", 300)),
        place.source("tiny", "a word\n\nor two"),
    ]);
    let corpus = place.corpus(&spec);
    let tokens = corpus.sources()[1].train.tokens;
    let error = Loader::new(&corpus, 500, 1, None).unwrap_err();
    assert!(
        matches!(error, DataError::SourceTooShort { ref name, tokens: t, seq_len: 500 } if name == "tiny" && t == tokens)
    );
    assert!(
        error
            .to_string()
            .contains(&format!("has {tokens} training tokens, fewer than the 501"))
    );
    assert!(Loader::new(&corpus, 500, 1, Some(&[1.0, 0.0])).is_ok());
    assert!(Loader::new(&corpus, tokens as usize, 1, None).is_err());
    assert_eq!(
        Loader::new(&corpus, tokens as usize - 1, 1, None)
            .unwrap()
            .windows()[1],
        1
    );
    assert!(matches!(
        Loader::new(&corpus, 0, 1, None),
        Err(DataError::ZeroSeqLen)
    ));
}

#[test]
fn a_shard_cut_off_under_a_loader_is_an_error() {
    let (_place, corpus) = two_sources();
    let loader = Loader::new(&corpus, 16, 7, None).unwrap();
    let shard = corpus.entry().join("000-train-00000.bin");
    std::fs::File::options()
        .write(true)
        .open(&shard)
        .unwrap()
        .set_len(1100)
        .unwrap();
    let total = loader.windows().iter().sum();
    let error = loader.read(0..total).unwrap_err();
    assert!(
        matches!(error, DataError::Read { ref path, .. } if *path == shard),
        "{error}"
    );
    assert!(matches!(
        Corpus::open(corpus.entry()),
        Err(DataError::Damaged { .. })
    ));
}

fn ranges(count: u64) -> impl Iterator<Item = Range<u64>> + Send {
    (0..count).map(|step| step * 4..(step + 1) * 4)
}

#[test]
fn prefetched_batches_are_those_that_would_be_read() {
    let (_place, corpus) = two_sources();
    let loader = Arc::new(Loader::new(&corpus, 16, 7, None).unwrap());
    for depth in [0, 1, 5] {
        let batches: Vec<_> = Prefetch::start(Arc::clone(&loader), ranges(30), depth)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let expected: Vec<_> = ranges(30)
            .map(|range| loader.read(range).unwrap())
            .collect();
        assert_eq!(batches, expected);
    }
}

#[test]
fn a_prefetch_ends_when_dropped() {
    let (_place, corpus) = two_sources();
    let loader = Arc::new(Loader::new(&corpus, 16, 7, None).unwrap());
    let mut prefetch = Prefetch::start(Arc::clone(&loader), ranges(u64::MAX / 4), 2).unwrap();
    prefetch.next().unwrap().unwrap();
    let (done, dropped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(prefetch);
        done.send(()).unwrap();
    });
    dropped
        .recv_timeout(Duration::from_secs(10))
        .expect("the thread should have stopped");
    assert_eq!(Arc::strong_count(&loader), 1);
}

#[test]
fn a_prefetch_hands_on_errors_and_panics() {
    let (_place, corpus) = two_sources();
    let loader = Arc::new(Loader::new(&corpus, 16, 7, None).unwrap());
    let broken =
        ranges(3).inspect(|range| assert!(range.start < 8, "no range from {}", range.start));
    let mut prefetch = Prefetch::start(Arc::clone(&loader), broken, 1).unwrap();
    assert!(prefetch.next().unwrap().is_ok());
    assert!(prefetch.next().unwrap().is_ok());
    let error = prefetch.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("no range from 8"), "{error}");
    assert!(prefetch.next().is_none());

    let shard = corpus.entry().join("000-train-00000.bin");
    std::fs::File::options()
        .write(true)
        .open(&shard)
        .unwrap()
        .set_len(1024)
        .unwrap();
    let mut prefetch = Prefetch::start(loader, ranges(100), 1).unwrap();
    let failure = prefetch.find_map(Result::err);
    assert!(matches!(failure, Some(DataError::Read { .. })));
    assert!(prefetch.next().is_none());
}

#[test]
fn validation_predicts_every_token_but_the_first_once() {
    let (_place, corpus) = two_sources();
    for seq_len in [1, 7, 16, 100_000] {
        let validation = Validation::new(&corpus, seq_len).unwrap();
        for source in 0..validation.sources() {
            let split = &corpus.sources()[source].validation;
            let windows = validation.windows(source);
            let mut predicted = 0;
            let mut previous_last = None;
            for window in 0..windows {
                let batch = validation.read(source, window..window + 1).unwrap();
                let mask = batch.loss_mask.unwrap();
                assert_eq!(mask.len(), seq_len);
                predicted += mask.iter().map(|&counts| u64::from(counts)).sum::<u64>();
                // Each window begins with the token that the one before predicted last.
                if let Some(last) = previous_last {
                    assert_eq!(batch.tokens[0], last);
                }
                previous_last = Some(batch.tokens[seq_len]);
                let real = mask
                    .iter()
                    .map(|&counts| usize::from(counts))
                    .sum::<usize>();
                assert!(
                    batch.tokens[real + 1..]
                        .iter()
                        .all(|&token| token == corpus.end_of_text())
                );
            }
            assert_eq!(predicted, split.tokens - 1);
            assert_eq!(validation.tokens_predicted(source), predicted);
        }
    }
}

#[test]
fn unigram_bits_per_byte_are_those_of_the_counts() {
    let (_place, corpus) = two_sources();
    let validation = Validation::new(&corpus, 1).unwrap();
    let batch = validation.read(0, 0..validation.windows(0)).unwrap();
    let tokens: Vec<u32> = std::iter::once(batch.tokens[0])
        .chain((0..batch.rows).map(|row| batch.row(row)[1]))
        .collect();
    let distinct: HashSet<u32> = tokens.iter().copied().collect();
    let bits: f64 = distinct
        .iter()
        .map(|token| {
            let share =
                tokens.iter().filter(|&other| other == token).count() as f64 / tokens.len() as f64;
            -share * share.log2()
        })
        .sum();
    let first = corpus
        .tokenizer()
        .unwrap()
        .decode(&tokens[..1])
        .unwrap()
        .len() as u64;
    assert_eq!(
        validation.bytes(0),
        Some(corpus.sources()[0].validation.bytes - first)
    );
    let expected = bits * (tokens.len() - 1) as f64 / validation.bytes(0).unwrap() as f64;
    let found = validation.unigram_bits_per_byte(0).unwrap();
    assert!((found - expected).abs() < 1e-9, "{found} {expected}");
}

#[test]
fn windows_that_do_not_exist_are_refused() {
    let (_place, corpus) = two_sources();
    let validation = Validation::new(&corpus, 16).unwrap();
    let windows = validation.windows(0);
    let error = validation.read(0, 0..windows + 1).unwrap_err();
    assert!(
        matches!(error, DataError::NoSuchWindow { source_index: 0, windows: w, .. } if w == windows)
    );
    assert!(validation.read(2, 0..1).is_err());
    assert_eq!(validation.read(0, windows..windows).unwrap().rows, 0);
}

#[test]
fn long_documents_are_tokenised_in_pieces_that_do_not_show() {
    let place = Place::new();
    let long = "Many words make a long line of text, and no line break comes. ".repeat(6000);
    let source = SourceSpec {
        format: Format::Text { separator: None },
        ..place.source("long", &long)
    };
    let corpus = place.corpus(&PrepareSpec {
        validation_fraction: 0.0,
        ..spec(vec![source])
    });
    let mut whole = corpus.tokenizer().unwrap().encode(&long).unwrap();
    whole.push(corpus.end_of_text());
    assert_eq!(training_tokens(&corpus, 0), whole);
}
