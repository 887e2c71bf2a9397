//! A folder with a little text and a config, and the program run in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// A tiny model on a little text in two "languages".
const CONFIG: &str = r#"
[model]
dim = 32
layers = 2
heads = 4
kv_heads = 2
ffn = 64
tie_embeddings = true

[data]
seq_len = 32
vocab_size = 300
validation_fraction = 0.1
cache_dir = "cache"

[[data.sources]]
name = "one"
path = "one.txt"

[[data.sources]]
name = "two"
path = "two.txt"

[train]
steps = 60
global_batch_size = 8
micro_batch_size = 2

[optimizer]
lr = 3e-3

[schedule]
warmup_steps = 5

[parallel]
threads = 1

[checkpoint]
every = 10
keep = 0

[eval]
sample_prompt = "the red fox"
sample_tokens = 8
"#;

/// A folder that lives as long as the test.
pub(crate) struct Fixture {
    dir: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tiny.toml"), CONFIG).unwrap();
        fs::write(
            dir.path().join("one.txt"),
            prose(["the", "red", "fox", "sees", "a", "hen", "and", "runs"], 1),
        )
        .unwrap();
        fs::write(
            dir.path().join("two.txt"),
            prose(
                ["le", "loup", "gris", "mange", "une", "poule", "et", "dort"],
                2,
            ),
        )
        .unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    /// The program with these arguments, run in the folder.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cordee"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .env("NO_COLOR", "1");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().unwrap())
    }

    /// `cordee train tiny.toml --run-dir RUN …`
    pub(crate) fn train(&self, run: &str, more: &[&str]) -> Finished {
        self.run(&[&["train", "tiny.toml", "--run-dir", run], more].concat())
    }

    /// The same, left running.
    pub(crate) fn start(&self, run: &str, more: &[&str]) -> Child {
        let arguments = [&["train", "tiny.toml", "--run-dir", run], more].concat();
        self.command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The lines of a run's metrics.
    pub(crate) fn steps(&self, run: &str) -> Vec<Value> {
        lines(&self.path(run).join("metrics.jsonl"))
    }

    /// The lines of a run's events.
    pub(crate) fn events(&self, run: &str) -> Vec<Value> {
        lines(&self.path(run).join("events.jsonl"))
    }

    /// What the launcher wrote down of the attempts at a run: those that ended.
    pub(crate) fn attempts(&self, run: &str) -> Vec<Value> {
        let mut records = lines(&self.path(run).join("attempts.jsonl"));
        records.retain(|record| record["event"] == "ended");
        records
    }

    /// How a run stands.
    pub(crate) fn status(&self, run: &str) -> Value {
        let text = fs::read(self.path(run).join("status.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// The losses of a run, step by step.
    pub(crate) fn losses(&self, run: &str) -> Vec<f64> {
        self.steps(run)
            .iter()
            .map(|step| step["loss"].as_f64().unwrap())
            .collect()
    }

    /// The name and hash of every tensor of a checkpoint.
    pub(crate) fn tensors(&self, checkpoint: &str) -> Vec<String> {
        let shown = self.run(&["checkpoint", "inspect", checkpoint]);
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
        shown
            .stdout
            .lines()
            .filter(|line| line.contains("F32"))
            .map(str::to_owned)
            .collect()
    }

    /// How many lines a run's metrics have, the last one perhaps not whole.
    pub(crate) fn steps_so_far(&self, run: &str) -> usize {
        let path = self.path(run).join("metrics.jsonl");
        fs::read_to_string(path).map_or(0, |text| text.lines().count())
    }

    /// Waits until a run has written the metrics of `step`.
    pub(crate) fn wait_for_step(&self, run: &str, step: u64) {
        let started = Instant::now();
        while self.steps_so_far(run) < step as usize {
            assert!(
                started.elapsed() < Duration::from_mins(1),
                "step {step} never came"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// How a program ended and what it printed.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Finished {
    /// Asserts the exit code, showing what was printed if it is another.
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Asserts that every one of these texts is in the error output.
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "`{text}` is not in:\n{}",
                self.stderr
            );
        }
        self
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Sentences of `words` in an order that a linear congruential generator decides.
fn prose(words: [&str; 8], seed: u64) -> String {
    let mut state = seed;
    let mut text = String::new();
    for sentence in 0..900 {
        for _ in 0..5 + sentence % 7 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            text.push_str(words[(state >> 33) as usize % words.len()]);
            text.push(' ');
        }
        text.push_str(if sentence % 9 == 8 { ".\n\n" } else { ".\n" });
    }
    text
}
