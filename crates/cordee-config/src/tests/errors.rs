//! How errors look: every kind, in a file and on the command line.

use std::path::Path;

use super::{Directory, errors, example_with, load_text};
use crate::{ConfigError, load, reference::EXAMPLE};

/// The smallest config with `lines` at its end.
fn then(lines: &str) -> String {
    format!("{EXAMPLE}\n{lines}\n")
}

/// Errors of the smallest config with each of `sets`.
fn set_errors(sets: &[&str]) -> String {
    let cases: Vec<_> = sets
        .iter()
        .map(std::slice::from_ref)
        .map(|set| (EXAMPLE, set))
        .collect();
    errors(&cases)
}

#[test]
fn unknown_keys() {
    assert_text!(errors(&[
        (&then("[optimizer]\nlr = 3e-4\n\twieght_decay = 0.1"), &[]),
        (&then("[optimizer]\nLR = 3e-4\nweight-decay = 0.1"), &[]),
        (&then("[optimizer]\nmomentum = 0.9"), &[]),
        (&then("[optimiser]\nlr = 3e-4"), &[]),
        (&then("[wandb]\nproject = \"x\""), &[]),
        (&then("optimizer.schedule.kind = 'cosine'"), &[]),
        (&format!("seed = 1\nhyper = 2\n{EXAMPLE}"), &[]),
        (&then("[checkpoint]\nsteps = 100"), &[]),
        (&then("every = 5"), &[]),
        (
            &example_with("name = \"books\"", "name = \"b\"\nwieght = 2"),
            &[]
        ),
        (&example_with("layers = 2", "layer = 2"), &[]),
        (&then("[log]\nextends = 'base.toml'"), &[]),
    ]));
    assert_text!(
        "unknown_keys_on_the_command_line",
        set_errors(&[
            "optimizer.lrr=1e-3",
            "optimizer={lr=1e-3, beta=2}",
            "lr=tiny",
            "extends=a.toml"
        ])
    );
}

#[test]
fn names_of_other_frameworks() {
    let names = [
        ("train", "learning_rate"),
        ("optimizer", "learning_rate"),
        ("train", "per_device_train_batch_size"),
        ("train", "micro_batch"),
        ("train", "gradient_accumulation_steps"),
        ("data", "sequence_len"),
        ("data", "cutoff_len"),
        ("data", "max_length"),
        ("model", "hidden_size"),
        ("model", "num_hidden_layers"),
        ("model", "num_attention_heads"),
        ("model", "num_key_value_heads"),
        ("model", "intermediate_size"),
        ("train", "lr_scheduler_type"),
        ("schedule", "warmup_ratio"),
        ("train", "warmup_steps"),
        ("train", "save_steps"),
        ("train", "max_steps"),
        ("train", "num_steps"),
        ("train", "num_train_epochs"),
    ];
    let hint = |(section, name): &(&str, &str)| {
        let error = load_text(EXAMPLE, &[&format!("{section}.{name}=1")]).unwrap_err();
        let diagnostic = &error.diagnostics()[0];
        assert_eq!(
            diagnostic.message,
            format!("unknown key `{name}` in `[{section}]`")
        );
        format!(
            "[{section}] {name}: {}",
            diagnostic.hint.as_deref().unwrap_or("no hint")
        )
    };
    assert_text!(names.iter().map(hint).collect::<Vec<_>>().join("\n"));
}

#[test]
fn wrong_types() {
    assert_text!(errors(&[
        (&example_with("dim = 64", "dim = \"wide\""), &[]),
        (&example_with("dim = 64", "dim = \"64\""), &[]),
        (&example_with("dim = 64", "dim = -64"), &[]),
        (&example_with("layers = 2", "layers = 2.5"), &[]),
        (
            &then("[optimizer]\nlr = '3e-4'\nbetas = [0.9]\nkind = true"),
            &[]
        ),
        (
            &then("[schedule]\nkind = 'cosin'\n[log]\ntensorboard = 'yes'"),
            &[]
        ),
        (&then("[schedule]\nkind = 'sawtooth'"), &[]),
        (
            &example_with("path = \"books.txt\"", "path = ['a.txt', 'b.txt']"),
            &[]
        ),
        (&example_with("[[data.sources]]", "[data.sources]"), &[]),
        (
            &example_with(
                "[[data.sources]]\nname = \"books\"\npath = \"books.txt\"\n",
                "sources = ['a']"
            ),
            &[]
        ),
        (&format!("optimizer = 3\n{EXAMPLE}"), &[]),
        (&then("[checkpoint]\nevery = 2024-01-01"), &[]),
    ]));
    assert_text!(
        "wrong_types_on_the_command_line",
        set_errors(&[
            "optimizer.lr=fast",
            "model.tie_embeddings='true'",
            "data.sources.0.path=a.txt"
        ])
    );
}

#[test]
fn bad_units() {
    assert_text!(errors(&[
        (&example_with("steps = 10", "steps = \"10x\""), &[]),
        (&example_with("steps = 10", "steps = -10"), &[]),
        (&example_with("steps = 10", "steps = 1e3"), &[]),
        (&then("[checkpoint]\npiece_size = \"16M\""), &[]),
        (&then("[parallel]\ntimeout = \"30m1h\""), &[]),
        (EXAMPLE, &["parallel.timeout=soon"]),
    ]));
}

#[test]
fn missing_keys() {
    assert_text!(errors(&[
        (&example_with("dim = 64\nlayers = 2", ""), &[]),
        (
            &example_with(
                "[train]\nsteps = 10\nglobal_batch_size = 8\nmicro_batch_size = 2\n",
                ""
            ),
            &[]
        ),
        (&example_with("path = \"books.txt\"", ""), &[]),
        (
            &example_with(
                "[[data.sources]]\nname = \"books\"\npath = \"books.txt\"\n",
                ""
            ),
            &[]
        ),
        ("", &[]),
        (EXAMPLE, &["data.sources=[{name='a'}]"]),
    ]));
}

#[test]
fn syntax() {
    assert_text!(errors(&[
        ("[model\ndim = 1", &[]),
        ("[model]\r\ndim =\r\n", &[]),
        ("[model]\ndim = 1\ndim = 2", &[]),
        ("[model]\nfamily = llama", &[]),
        ("[model]\nfamily = 'llama", &[]),
        ("# \u{e9}\u{e9}\n\u{e9} = 1", &[]),
        ("[model]\ndim = 99999999999999999999", &[]),
    ]));
    assert_text!(
        "syntax_on_the_command_line",
        set_errors(&[
            "optimizer.lr",
            "=3",
            "optimizer.=3",
            "optimizer.betas=[0.9, 0.95",
            "a b=c"
        ])
    );
}

#[test]
fn several_at_once() {
    assert_text!(errors(&[(
        &example_with("heads = 4", "head = 4").replace("steps = 10", "steps = \"ten\""),
        &["optimizer.betas=0.9", "chekpoint.every=3"]
    )]));
}

#[test]
fn errors_in_a_base_point_into_the_base() {
    let directory = Directory::new(&[
        (
            "configs/base/small.toml",
            &example_with("heads = 4", "heads = 4\nhead_dims = 16"),
        ),
        (
            "configs/run.toml",
            "extends = 'base/small.toml'\n[train]\nsteps = '5x'\n",
        ),
        ("configs/broken.toml", "extends = 'base/broken.toml'"),
        ("configs/base/broken.toml", "[train\n"),
        (
            "configs/invalid.toml",
            "extends = 'base/invalid.toml'\n[schedule]\nwarmup_steps = 11",
        ),
        (
            "configs/base/invalid.toml",
            &example_with("heads = 4", "heads = 5"),
        ),
    ]);
    let error = |name: &str| {
        let error = directory.load(name, &[]).unwrap_err();
        directory.relative(&format!("error: {error}\n"))
    };
    assert_text!(
        [
            "configs/run.toml",
            "configs/broken.toml",
            "configs/invalid.toml"
        ]
        .map(error)
        .join("\n")
    );
}

#[test]
fn files_that_cannot_be_read() {
    let directory = Directory::new(&[
        ("missing.toml", "\nextends = \"base/nowhere.toml\""),
        ("number.toml", "extends = 3"),
        ("a.toml", "extends = 'sub/b.toml'"),
        ("sub/b.toml", "extends = '../sub/c.toml'"),
        ("sub/c.toml", "# back to b\nextends = 'b.toml'"),
        ("self.toml", "extends = 'self.toml'"),
    ]);
    std::fs::write(directory.path("binary.toml"), [0x66, 0xff, 0xfe]).unwrap();
    let error = |name: &str| {
        let error = directory.load(name, &[]).unwrap_err();
        directory.relative(&format!("error: {error}\n"))
    };
    let names = [
        "nowhere.toml",
        "missing.toml",
        "number.toml",
        "binary.toml",
        "a.toml",
        "self.toml",
        "sub",
    ];
    assert_text!(names.map(error).join("\n"));
    let Err(ConfigError::Cycle { chain, .. }) = directory.load("a.toml", &[]) else {
        panic!()
    };
    assert_eq!(chain.len(), 3);
    let missing = load(Path::new("no such file.toml"), &[]).unwrap_err();
    assert!(
        matches!(missing, ConfigError::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    );
}

proptest::proptest! {
    /// Whatever stands in a file or in an argument, there is a config or an error that can be shown.
    #[test]
    fn nothing_panics(text in "[\\PC\n\t=\\[\\]\"']{0,60}", set in "[a-z.=\"'{\\[\u{e9} ]{0,20}") {
        let shown = load_text(&text, &[]).unwrap_err().to_string();
        proptest::prop_assert!(!shown.is_empty());
        if let Err(error) = load_text(EXAMPLE, &[&set]) {
            proptest::prop_assert!(!error.to_string().is_empty());
        }
    }
}
