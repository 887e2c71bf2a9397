//! Examples to rows: what is learned, what is held out, what is refused, and that nothing gets lost.

use std::path::PathBuf;

use cordee_config::TooLong;
use cordee_data::{
    Batch, Corpus, DataError, ExampleKeys, Format, Loader, PrepareSpec, SourceSpec, Tokenizer,
    Validation, Vocabulary,
};
use proptest::prelude::*;
use serde_json::json;

use crate::support::{Place, spec, text};

fn examples(place: &Place, lines: &str) -> SourceSpec {
    let path = place.dir.path().join("tasks.jsonl");
    std::fs::write(&path, lines).unwrap();
    SourceSpec {
        name: "tasks".to_owned(),
        path,
        format: Format::Examples {
            keys: ExampleKeys::default(),
            too_long: TooLong::Error,
        },
    }
}

fn too_long(mut source: SourceSpec, policy: TooLong) -> SourceSpec {
    if let Format::Examples { too_long, .. } = &mut source.format {
        *too_long = policy;
    }
    source
}

fn pair(prompt: &str, completion: &str) -> String {
    json!({"prompt": prompt, "completion": completion}).to_string() + "\n"
}

fn conversation(turns: &[(&str, &str)]) -> String {
    let messages: Vec<_> = turns
        .iter()
        .map(|(role, content)| json!({"role": role, "content": content}))
        .collect();
    json!({ "messages": messages }).to_string() + "\n"
}

/// All rows of the training split, once.
fn training_rows(corpus: &Corpus, seq_len: usize) -> Batch {
    let loader = Loader::new(corpus, seq_len, 7, None).unwrap();
    loader.read(0..loader.windows().iter().sum()).unwrap()
}

/// The tokens of each document of a batch with whether each is learned; padding left out. Checks
/// that bounds begin and end with the inputs and lie at the start of every row.
fn documents(batch: &Batch, end_of_text: u32) -> Vec<Vec<(u32, bool)>> {
    let bounds = batch.documents.as_ref().unwrap();
    let mask = batch.loss_mask.as_ref().unwrap();
    let inputs = batch.rows * batch.seq_len;
    assert_eq!((bounds[0], bounds.last()), (0, Some(&(inputs as u32))));
    assert!(bounds.is_sorted_by(|a, b| a < b));
    for row in 0..batch.rows {
        assert!(bounds.contains(&((row * batch.seq_len) as u32)));
    }
    let mut found = Vec::new();
    for bound in bounds.windows(2) {
        let (start, end) = (bound[0] as usize, bound[1] as usize);
        let (row, column) = (start / batch.seq_len, start % batch.seq_len);
        let tokens = &batch.row(row)[column..];
        let mut document: Vec<(u32, bool)> = (0..end - start)
            .map(|at| (tokens[at], at > 0 && mask[start + at - 1] == 1))
            .collect();
        // An example's last token is learned: at a row's end it is a target alone.
        if mask[end - 1] == 1 {
            assert_eq!(end % batch.seq_len, 0, "learned across a bound");
            document.push((tokens[end - start], true));
        }
        if document
            .iter()
            .all(|&(token, learned)| token == end_of_text && !learned)
        {
            continue;
        }
        found.push(document);
    }
    found.sort();
    found
}

/// A pair as it should stand in a row.
fn expected(tokenizer: &Tokenizer, prompt: &str, completion: &str) -> Vec<(u32, bool)> {
    let mut tokens: Vec<(u32, bool)> = Vec::new();
    tokens.extend(tokenizer.begin_of_document().iter().map(|&id| (id, false)));
    tokens.extend(
        tokenizer
            .encode(prompt)
            .unwrap()
            .iter()
            .map(|&id| (id, false)),
    );
    let answer = tokenizer.encode(completion).unwrap();
    tokens.extend(answer.iter().map(|&id| (id, true)));
    tokens.push((tokenizer.end_of_text(), true));
    if prompt.is_empty() && tokenizer.begin_of_document().is_empty() {
        // Nothing comes before the first token.
        tokens[0].1 = false;
    }
    tokens
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_example_is_in_one_row_and_learned_where_it_should_be(
        pairs in prop::collection::vec(("[a-e ]{0,9}", "[a-e]{1,9}"), 2..60),
        seq_len in 21usize..60,
    ) {
        let place = Place::new();
        let lines: String = pairs.iter().map(|(prompt, completion)| pair(prompt, completion)).collect();
        let spec = PrepareSpec {
            seq_len,
            vocabulary: Vocabulary::Train(262),
            ..spec(vec![examples(&place, &lines)])
        };
        let corpus = match place.prepare(&spec).0 {
            // Few and equal prompts leave nothing to hold out.
            Err(DataError::NothingToHoldOut { .. }) => return Ok(()),
            corpus => corpus.unwrap(),
        };
        let tokenizer = corpus.tokenizer().unwrap();
        let train = training_rows(&corpus, seq_len);
        let validation = Validation::new(&corpus, seq_len).unwrap();
        let held_out = validation.read(0, 0..validation.windows(0)).unwrap();
        let end = corpus.end_of_text();
        let (learned, tested) = (documents(&train, end), documents(&held_out, end));
        prop_assert!(!learned.is_empty() && !tested.is_empty());
        let mut found = [learned, tested].concat();
        found.sort();
        let mut all: Vec<_> = pairs
            .iter()
            .map(|(prompt, completion)| expected(&tokenizer, prompt, completion))
            .collect();
        all.sort();
        prop_assert_eq!(found, all);

        let split = &corpus.sources()[0];
        let count = |batch: &Batch| batch.loss_mask.as_ref().unwrap().iter().map(|&it| u64::from(it)).sum::<u64>();
        prop_assert_eq!(split.train.packed.as_ref().unwrap().learned, count(&train));
        prop_assert_eq!(validation.tokens_predicted(0), count(&held_out));
        prop_assert_eq!(split.train.documents + split.validation.documents, pairs.len() as u64);
    }
}

#[test]
fn a_prompt_is_on_one_side_whatever_the_order() {
    let place = Place::new();
    let mut lines: Vec<String> = (0..200)
        .map(|n| pair(&format!("What is {}?", n / 2), &format!("It is {n}.")))
        .collect();
    let prepared = |lines: &[String]| {
        let corpus = place.corpus(&spec(vec![examples(&place, &lines.concat())]));
        let tokenizer = corpus.tokenizer().unwrap();
        let texts = |batch: &Batch| -> Vec<String> {
            documents(batch, corpus.end_of_text())
                .iter()
                .map(|tokens| tokens.iter().map(|&(id, _)| id).collect::<Vec<_>>())
                .map(|ids| tokenizer.decode(&ids).unwrap())
                .collect()
        };
        let validation = Validation::new(&corpus, 32).unwrap();
        let held_out = validation.read(0, 0..validation.windows(0)).unwrap();
        (texts(&training_rows(&corpus, 32)), texts(&held_out))
    };
    let (learned, held_out) = prepared(&lines);
    assert_eq!((learned.len(), held_out.len()), (180, 20));
    let prompt = |text: &String| text.split('?').next().unwrap().to_owned();
    for text in &held_out {
        assert!(!learned.iter().any(|other| prompt(other) == prompt(text)));
    }
    lines.reverse();
    let (_, mut again) = prepared(&lines);
    again.sort();
    let mut held_out = held_out;
    held_out.sort();
    assert_eq!(again, held_out);
}

/// A tokenizer with the marks of `ChatML`, which no template comes with.
fn chat_tokenizer(place: &Place) -> PathBuf {
    let corpus = place.corpus(&spec(vec![place.source("words", text("Dog", 50))]));
    let bytes = std::fs::read(corpus.tokenizer_path()).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let first = corpus.vocab_size();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for (id, token) in [(first, "<|im_start|>"), (first + 1, "<|im_end|>")] {
        let mut mark = added[0].clone();
        mark["id"] = json!(id);
        mark["content"] = json!(token);
        added.push(mark);
    }
    let dir = place.dir.path().join("model");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

fn chat_spec(place: &Place, lines: &str, tokenizer: PathBuf) -> PrepareSpec {
    PrepareSpec {
        vocabulary: Vocabulary::File(tokenizer),
        validation_fraction: 0.0,
        seq_len: 256,
        ..spec(vec![examples(place, lines)])
    }
}

fn learned_texts(corpus: &Corpus) -> Vec<String> {
    let tokenizer = corpus.tokenizer().unwrap();
    let batch = training_rows(corpus, 256);
    let documents = documents(&batch, corpus.end_of_text());
    let show = |document: &Vec<(u32, bool)>| {
        let mut shown = String::new();
        for run in document.chunk_by(|a, b| a.1 == b.1) {
            let ids: Vec<u32> = run.iter().map(|&(id, _)| id).collect();
            let text = tokenizer.decode(&ids).unwrap();
            let marks = if run[0].1 { ["[[", "]]"] } else { ["", ""] };
            shown.extend([marks[0], &text, marks[1]]);
        }
        shown
    };
    documents.iter().map(show).collect()
}

#[test]
fn of_a_conversation_the_answers_are_learned() {
    let place = Place::new();
    let tokenizer = chat_tokenizer(&place);
    let lines = conversation(&[
        ("system", "Be a dog."),
        ("user", "Hi"),
        // Line breaks that would become one token with the one before them.
        ("assistant", "\n\nWoof"),
        ("user", "Bye"),
        ("assistant", "Wuff"),
        ("user", "never answered"),
    ]);
    let corpus = place.corpus(&chat_spec(&place, &lines, tokenizer.clone()));
    insta::assert_snapshot!(learned_texts(&corpus).concat(), @r#"
    <|im_start|>system
    Be a dog.<|im_end|>
    <|im_start|>user
    Hi<|im_end|>
    <|im_start|>assistant
    [[

    Woof<|im_end|>]]
    <|im_start|>user
    Bye<|im_end|>
    <|im_start|>assistant
    [[Wuff<|im_end|>]]
    "#);
    // A template beside the tokenizer comes first, and makes it another corpus.
    let template = "{% for m in messages %}{{ m.role.upper() }}: {{ m.content.strip() }}\n{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}";
    std::fs::write(tokenizer.join("chat_template.jinja"), template).unwrap();
    let templated = place.corpus(&chat_spec(&place, &lines, tokenizer));
    assert_ne!(templated.fingerprint(), corpus.fingerprint());
    insta::assert_snapshot!(learned_texts(&templated).concat(), @r#"
    SYSTEM: Be a dog.
    USER: Hi
    ASSISTANT:[[ Woof
    ]]USER: Bye
    ASSISTANT:[[ Wuff
    ]]
    "#);
    let config = std::fs::read_to_string(templated.tokenizer_config_path()).unwrap();
    assert!(config.contains("m.role.upper()"), "{config}");
}

#[test]
fn the_end_of_text_is_the_one_that_is_named() {
    let place = Place::new();
    let dir = chat_tokenizer(&place);
    let corpus = |config: &str| {
        std::fs::write(dir.join("tokenizer_config.json"), config).unwrap();
        place
            .prepare(&chat_spec(&place, &pair("a", "b"), dir.clone()))
            .0
    };
    let named = corpus(r#"{"eos_token": "<|im_end|>"}"#).unwrap();
    let tokenizer = named.tokenizer().unwrap();
    assert_eq!(
        tokenizer.decode(&[named.end_of_text()]).unwrap(),
        "<|im_end|>"
    );
    // The copy knows it too.
    assert_eq!(tokenizer.end_of_text(), named.end_of_text());
    assert_eq!(corpus("{}").unwrap().end_of_text(), 0);
    let error = corpus(r#"{"eos_token": "</s>"}"#).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer_config.json: it names </s> as the end of a text"),
        "{error}"
    );
}

#[test]
fn text_and_examples_share_a_batch() {
    let place = Place::new();
    let lines: String = (0..40).map(|n| pair(&format!("Q{n}"), "A")).collect();
    let sources = vec![
        place.source("words", text("Dog", 50)),
        examples(&place, &lines),
    ];
    let corpus = place.corpus(&spec(sources));
    let loader = Loader::new(&corpus, 32, 1, Some(&[1.0, 1.0])).unwrap();
    let batch = loader.read(0..8).unwrap();
    let (bounds, mask) = (batch.documents.unwrap(), batch.loss_mask.unwrap());
    for (row, &source) in batch.sources.iter().enumerate() {
        let (start, end) = (row * 32, (row + 1) * 32);
        let inside = bounds
            .iter()
            .filter(|&&bound| (start..end).contains(&(bound as usize)));
        let learned: u32 = mask[start..end].iter().map(|&it| u32::from(it)).sum();
        if source == 0 {
            assert_eq!((inside.count(), learned), (1, 32));
        } else {
            assert!(inside.count() > 1 && (1..32).contains(&learned));
        }
    }
    assert!(batch.sources.contains(&0) && batch.sources.contains(&1));
    let nothing = loader.read(0..0).unwrap();
    assert_eq!(nothing.documents, Some(vec![0]));
    let validation = Validation::new(&corpus, 32).unwrap();
    assert!(validation.bytes(0).is_some() && validation.read(0, 0..1).unwrap().documents.is_none());
    assert_eq!(
        (validation.bytes(1), validation.unigram_bits_per_byte(1)),
        (None, None)
    );
    let error = Loader::new(&corpus, 16, 1, None).unwrap_err().to_string();
    assert_eq!(
        error,
        "source `tasks` was packed into sequences of 32, not of 16: prepare it again"
    );
}

#[test]
fn what_is_too_long_is_left_out_cut_or_refused() {
    let place = Place::new();
    let long = "x".repeat(40);
    let lines = pair("a", "b") + "\n" + &pair("c", &long) + &pair("d", "e");
    let prepared = |policy| {
        let source = too_long(examples(&place, &lines), policy);
        let spec = PrepareSpec {
            seq_len: 16,
            validation_fraction: 0.0,
            vocabulary: Vocabulary::Train(257),
            ..spec(vec![source])
        };
        place.prepare(&spec).0
    };
    let skipped = prepared(TooLong::Skip).unwrap();
    let packed = skipped.sources()[0].train.packed.clone().unwrap();
    assert_eq!(
        (skipped.sources()[0].train.documents, packed.left_out),
        (2, 1)
    );
    let cut = prepared(TooLong::Truncate).unwrap();
    let packed = cut.sources()[0].train.packed.clone().unwrap();
    assert_eq!((cut.sources()[0].train.documents, packed.truncated), (3, 1));
    assert_eq!(packed.learned, 16 + 2 + 2);
    assert_ne!(skipped.fingerprint(), cut.fingerprint());
    let error = prepared(TooLong::Error).unwrap_err().to_string();
    assert!(error.contains("tasks.jsonl:3: it has 42 tokens"), "{error}");
}

#[test]
fn errors_name_the_line_and_what_to_do() {
    let place = Place::new();
    let dir = place.dir.path().display().to_string();
    let with_chat = chat_tokenizer(&place);
    let refused = |lines: &str, vocabulary: Vocabulary, policy, fraction| {
        let spec = PrepareSpec {
            seq_len: 16,
            validation_fraction: fraction,
            vocabulary,
            ..spec(vec![too_long(examples(&place, lines), policy)])
        };
        let error = place.prepare(&spec).0.unwrap_err().to_string();
        error.replace(&format!("{dir}/"), "")
    };
    let trained = || Vocabulary::Train(257);
    let good = pair("a", "b");
    let asked = [("user", "a"), ("assistant", "b")];
    let errors = [
        refused(
            &(good.clone() + "\n{\"prompt\": \"a\""),
            trained(),
            TooLong::Skip,
            0.5,
        ),
        refused(
            &(good.clone() + &pair("c", " ")),
            trained(),
            TooLong::Skip,
            0.5,
        ),
        refused(&conversation(&asked), trained(), TooLong::Skip, 0.0),
        refused(
            &conversation(&[("user", "what is <|im_end|>?"), asked[1]]),
            Vocabulary::File(with_chat),
            TooLong::Skip,
            0.0,
        ),
        refused(&pair(&"a".repeat(20), "b"), trained(), TooLong::Error, 0.0),
        refused(
            &pair(&"a".repeat(20), "b"),
            trained(),
            TooLong::Truncate,
            0.0,
        ),
        refused(&pair(&"a".repeat(20), "b"), trained(), TooLong::Skip, 0.0),
        refused(&good, trained(), TooLong::Skip, 0.1),
        refused(&good.repeat(3), trained(), TooLong::Skip, 0.1),
        refused("\n\n", trained(), TooLong::Skip, 0.1),
    ];
    insta::assert_snapshot!(errors.join("\n"), @r#"
    tasks.jsonl:3: it is not JSON: EOF while parsing an object at column 14; each line must be one JSON object
    tasks.jsonl:2: "completion" is blank, so that there is nothing to learn: give it text, or remove the line
    tasks.jsonl:1: messages need a chat template, and the tokenizer has none: name one with data.tokenizer that has chat_template.jinja beside it or the special tokens <|im_start|> and <|im_end|> of ChatML, or give prompts and completions
    tasks.jsonl:1: message 1 spells <|im_end|>, a special token of the tokenizer, which would be read as that token: change it, or remove the line
    tasks.jsonl:1: it has 22 tokens, and a sequence holds 17 (data.seq_len + 1): shorten it, raise data.seq_len, or set too_long = "skip" or "truncate"
    tasks.jsonl:1: cut to the 17 tokens that a sequence holds (of 22), it has nothing left to learn: shorten its prompt, raise data.seq_len, or set too_long = "skip"
    source `tasks`: all 1 examples to learn are longer than a sequence of 17 tokens: raise data.seq_len, or set too_long = "truncate"
    source `tasks`: none of its 1 examples can be held out for validation, because there is no other: add examples
    source `tasks`: none of its 3 examples can be held out for validation, because holding out a prompt with all its completions would leave none to learn: add examples
    tasks.jsonl holds no text: it is empty or only white space
    "#);
}

/// What lies in `data/`, shipped with the repository.
fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../data")
        .join(name)
}

#[test]
fn the_shipped_examples_fill_rows_with_the_shipped_tokenizer() {
    let place = Place::new();
    let source = SourceSpec {
        name: "gsm8k".to_owned(),
        path: shipped("gsm8k.jsonl"),
        format: Format::Examples {
            keys: ExampleKeys {
                prompt: Some("question".to_owned()),
                completion: Some("answer".to_owned()),
                messages: None,
            },
            too_long: TooLong::Skip,
        },
    };
    let spec = PrepareSpec {
        vocabulary: Vocabulary::File(shipped("stories260k")),
        seq_len: 512,
        ..spec(vec![source])
    };
    let corpus = place.corpus(&spec);
    let split = &corpus.sources()[0];
    let (train, held_out) = (&split.train, &split.validation);
    let packed = train.packed.as_ref().unwrap();
    let left_out = packed.left_out + held_out.packed.as_ref().unwrap().left_out;
    assert_eq!(train.documents + held_out.documents + left_out, 499);
    assert!(
        (40..=50).contains(&held_out.documents),
        "{}",
        held_out.documents
    );
    // Most examples are longer than half a row, so that few share one.
    let filled = train.tokens as f64 / (packed.rows * 513) as f64;
    assert!(filled > 0.8, "{filled}");

    let tokenizer = corpus.tokenizer().unwrap();
    let (begin, end) = (tokenizer.begin_of_document(), tokenizer.end_of_text());
    assert_eq!(tokenizer.decode(&[begin[0], end]).unwrap(), "<s></s>");
    let documents = documents(&training_rows(&corpus, 512), end);
    assert_eq!(documents.len() as u64, train.documents);
    for document in &documents {
        assert_eq!(document.first(), Some(&(begin[0], false)));
        assert_eq!(document.last(), Some(&(end, true)));
        let (asked, answered): (Vec<_>, Vec<_>) =
            document.iter().partition(|(_, learned)| !learned);
        let text = |tokens: Vec<&(u32, bool)>| {
            let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
            tokenizer.decode(&ids).unwrap()
        };
        assert!(text(answered).contains("\n#### "));
        assert!(!text(asked).contains("####"));
    }
}

#[test]
fn documents_of_text_begin_as_the_tokenizer_says() {
    let place = Place::new();
    let source = place.source("words", "one two\n\nthree\n\nfour five six");
    let spec = PrepareSpec {
        vocabulary: Vocabulary::File(shipped("stories260k")),
        validation_fraction: 0.0,
        ..spec(vec![source])
    };
    let corpus = place.corpus(&spec);
    let split = &corpus.sources()[0].train;
    let loader = Loader::new(&corpus, split.tokens as usize - 1, 0, None).unwrap();
    let batch = loader.read(0..1).unwrap();
    let text = corpus.tokenizer().unwrap().decode(&batch.tokens).unwrap();
    assert_eq!(text, "<s> one two</s><s> three</s><s> four five six</s>");
    assert_eq!((split.first_token_bytes, batch.documents), (0, None));
}
