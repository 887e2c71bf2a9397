//! What `cordee plan` foretells, against what ranks really hold.

use serde_json::Value;

use crate::fixture::Fixture;

/// A size as it is printed, in bytes.
fn bytes(text: &str) -> f64 {
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap();
    let scale = match &text[unit..] {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        other => panic!("{other}"),
    };
    text[..unit].parse::<f64>().unwrap() * scale
}

/// The figure behind a label.
fn figure(page: &str, label: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(label))?;
    Some(bytes(line.split_whitespace().next()?))
}

/// Width, blocks, heads, feed-forward width, vocabulary, tokens of a sequence, sequences; and what
/// else differs. Large enough for the parts that differ between machines to be small.
const SHAPES: [(&str, &[&str]); 5] = [
    ("288 2 6 768 16000 256 8", &[]),
    ("288 2 6 768 16000 256 8", &["train.recompute=\"full\""]),
    (
        "384 4 6 1024 4000 256 4",
        &["model.tie_embeddings=true", "train.recompute=\"light\""],
    ),
    (
        "256 2 4 700 16000 128 4",
        &["parallel.workers=2", "train.micro_batch_size=2"],
    ),
    (
        "256 2 4 700 16000 128 4",
        &[
            "parallel.workers=4",
            "train.micro_batch_size=1",
            "parallel.shard=\"optimizer\"",
        ],
    ),
];

#[test]
fn ranks_hold_what_was_planned() {
    let fixture = Fixture::new();
    for (shape, more) in SHAPES {
        let keys = [
            "model.dim",
            "model.layers",
            "model.heads",
            "model.ffn",
            "model.vocab_size",
            "data.seq_len",
            "train.global_batch_size",
        ];
        let mut sets: Vec<String> = ["model.kv_heads=2", "parallel.workers=1"]
            .map(str::to_owned)
            .into();
        let values: Vec<&str> = shape.split(' ').collect();
        sets.extend(
            keys.iter()
                .zip(&values)
                .map(|(key, value)| format!("{key}={value}")),
        );
        sets.push(format!("train.micro_batch_size={}", values[6]));
        sets.extend(more.iter().map(|set| (*set).to_owned()));
        let sets: Vec<&str> = sets
            .iter()
            .flat_map(|set| ["--set", set.as_str()])
            .collect();

        let planned = fixture.run(&[&["plan", "tiny.toml"], &sets[..]].concat());
        let planned = planned.expect(0).stdout;
        let expected = figure(&planned, "counted as resident")
            .or_else(|| figure(&planned, "peak"))
            .unwrap();
        let bench = [
            "bench",
            "train",
            "--config",
            "tiny.toml",
            "--steps",
            "1",
            "--warmup",
            "1",
            "--json",
        ];
        let measured = fixture.run(&[&bench, &sets[..]].concat()).expect(0).stdout;
        let measured: Value = serde_json::from_str(&measured).unwrap();
        let measured = measured["peak_rss_mb"].as_f64().unwrap() * 1024.0 * 1024.0;
        println!(
            "{shape} {more:?}: {:.0} MiB measured, {:.1}% planned",
            measured / 1_048_576.0,
            100.0 * expected / measured
        );
        assert!(
            (measured / expected - 1.0).abs() < 0.1,
            "{shape} {more:?}: {measured} bytes measured\n{planned}"
        );
    }
}

#[test]
fn what_does_not_fit_is_told_what_to_change() {
    let fixture = Fixture::new();
    let plan = |memory: &str, code| {
        let large = [
            "--set",
            "data.seq_len=4096",
            "--set",
            "train.micro_batch_size=4",
        ];
        let arguments = ["plan", "tiny.toml", "--memory", memory];
        fixture
            .run(&[&arguments[..], &large].concat())
            .expect(code)
            .stdout
    };
    let fits = plan("100GiB", 0);
    assert!(
        fits.contains("it fits: 50.0GiB of 100GiB for each of 2 ranks"),
        "{fits}"
    );
    let needed = figure(&fits, "peak").unwrap();
    let tight = plan(
        &format!("{}MiB", (2.0 * needed / 1_048_576.0) as u64 - 2),
        1,
    );
    assert!(
        tight.contains("with --set 'parallel.shard=\"optimizer\"' --set 'train.recompute=\"light\"' a rank's peak is"),
        "{tight}"
    );
    let hopeless = plan("1MiB", 1);
    assert!(
        hopeless.contains("even with --set 'parallel.shard=\"optimizer\"' --set 'train.recompute=\"full\"' --set 'train.micro_batch_size=1' --set 'parallel.workers=1'"),
        "{hopeless}"
    );
}
