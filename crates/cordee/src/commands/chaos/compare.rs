//! Whether two runs are the same, to the bit.

use std::path::Path;

use anyhow::{Context, anyhow};
use cordee_checkpoint::{Checkpoint, discover, verify};
use cordee_metrics::{METRICS_FILE, TIMING_FIELDS};
use serde::Serialize;
use serde_json::{Map, Value};

/// Differences that are told of each kind; the others are counted.
const TOLD: usize = 5;

/// How many there were to compare, and which differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Compared {
    pub(super) count: usize,
    pub(super) different: usize,
    /// The first of them.
    pub(super) differences: Vec<String>,
}

impl Compared {
    pub(super) fn is_equal(&self) -> bool {
        self.different == 0 && self.count > 0
    }

    fn note(&mut self, difference: String) {
        self.different += 1;
        if self.differences.len() < TOLD {
            self.differences.push(difference);
        }
    }
}

/// The steps of two runs, each with all that was recorded of it but for what time it took.
pub(super) fn steps(undisturbed: &Path, disturbed: &Path) -> anyhow::Result<Compared> {
    let read = |dir: &Path| -> anyhow::Result<Vec<Map<String, Value>>> {
        let path = dir.join(METRICS_FILE);
        let text = fs_err::read_to_string(&path)?;
        let lines = text.lines().enumerate();
        lines
            .map(|(index, line)| {
                serde_json::from_str(line)
                    .with_context(|| format!("line {} of {}", index + 1, path.display()))
            })
            .collect()
    };
    let (expected, found) = (read(undisturbed)?, read(disturbed)?);
    let mut compared = Compared {
        count: expected.len(),
        ..Compared::default()
    };
    if expected.len() != found.len() {
        compared.note(format!(
            "{} steps are on record, {} in the undisturbed run",
            found.len(),
            expected.len()
        ));
    }
    for (expected, found) in expected.iter().zip(&found) {
        let differences = fields(expected, found);
        if !differences.is_empty() {
            compared.note(format!(
                "step {}: {}",
                expected["step"],
                differences.join(", ")
            ));
        }
    }
    Ok(compared)
}

/// The fields in which two lines differ. Numbers are compared as they are written, which says every bit.
fn fields(expected: &Map<String, Value>, found: &Map<String, Value>) -> Vec<String> {
    let text = |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), Value::to_string);
    let mut names: Vec<&String> = expected.keys().chain(found.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .filter(|name| !TIMING_FIELDS.contains(&name.as_str()))
        .filter_map(|name| {
            let (expected, found) = (text(expected.get(name)), text(found.get(name)));
            (expected != found).then(|| format!("{name} is {found}, undisturbed {expected}"))
        })
        .collect()
}

/// The tensors of the newest checkpoints of two runs, every byte of them verified.
pub(super) fn tensors(undisturbed: &Path, disturbed: &Path) -> anyhow::Result<Compared> {
    let (expected, found) = (newest(undisturbed)?, newest(disturbed)?);
    let mut compared = Compared {
        count: expected.tensors().len(),
        ..Compared::default()
    };
    if expected.step() != found.step() {
        compared.note(format!(
            "the newest checkpoint is of step {}, undisturbed {}",
            found.step(),
            expected.step()
        ));
    }
    if expected.tensors() != found.tensors() {
        compared.note("the checkpoint holds other tensors".to_owned());
        return Ok(compared);
    }
    for tensor in expected.tensors() {
        if expected.tensor_hash(&tensor.name)? != found.tensor_hash(&tensor.name)? {
            compared.note(format!("tensor {} differs", tensor.name));
        }
    }
    Ok(compared)
}

fn newest(run: &Path) -> anyhow::Result<Checkpoint> {
    let dir = run.join("checkpoints");
    let found = discover(&dir)?;
    let newest = found
        .first()
        .ok_or_else(|| anyhow!("{} holds no checkpoint", dir.display()))?;
    Ok(verify(&newest.path)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cordee_checkpoint::{
        BLOCK_SIZE, CommitInfo, Dtype, Plan, TensorSource, TensorSpec, begin, commit, write_shard,
    };
    use insta::assert_snapshot;
    use tempfile::TempDir;

    use super::*;

    /// A run with these lines of metrics and, in its one tensor, this byte everywhere.
    fn run(metrics: &str, byte: u8) -> TempDir {
        struct Bytes(u8);
        impl TensorSource for Bytes {
            fn copy_bytes(&self, _: &str, _: u64, out: &mut [u8]) -> Result<(), String> {
                out.fill(self.0);
                Ok(())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(METRICS_FILE), metrics).unwrap();
        let specs = [TensorSpec {
            name: "weight".to_owned(),
            dtype: Dtype::F32,
            shape: vec![3],
        }];
        let plan = Plan::new(&specs, 1).unwrap();
        let temporary = begin(&folder.path().join("checkpoints"), 2).unwrap();
        write_shard(&temporary, 0, &plan, &Bytes(byte), None, BLOCK_SIZE).unwrap();
        let info = CommitInfo {
            step: 2,
            plan: &plan,
            state: Value::Null,
            deadline: Duration::from_secs(5),
        };
        commit(&temporary, &info).unwrap();
        folder
    }

    const METRICS: &str =
        "{\"step\":1,\"loss\":2.5,\"time\":1.0}\n{\"step\":2,\"loss\":2.25,\"time\":2.0}\n";

    #[test]
    fn runs_that_differ_in_time_alone_are_the_same() {
        let later = METRICS.replace("\"time\":2.0", "\"time\":7.5");
        let (a, b) = (run(METRICS, 1), run(&later, 1));
        for compared in [steps(a.path(), b.path()), tensors(a.path(), b.path())] {
            assert!(compared.unwrap().is_equal());
        }
    }

    #[test]
    fn a_loss_that_differs_in_its_last_bit_is_found() {
        let other = METRICS.replace("2.25", "2.2500000000000004");
        let (a, b) = (run(METRICS, 1), run(&other, 1));
        let compared = steps(a.path(), b.path()).unwrap();
        assert!(!compared.is_equal());
        assert_snapshot!(compared.differences.join("\n"), @"step 2: loss is 2.2500000000000004, undisturbed 2.25");
    }

    #[test]
    fn steps_and_fields_that_are_missing_are_found() {
        let (a, b) = (run(METRICS, 1), run("{\"step\":1,\"time\":1.0}\n", 1));
        let compared = steps(a.path(), b.path()).unwrap();
        assert_eq!(compared.different, 2);
        assert_snapshot!(compared.differences.join("\n"), @"
        1 steps are on record, 2 in the undisturbed run
        step 1: loss is absent, undisturbed 2.5
        ");
        let nothing = run("", 1);
        assert!(
            !steps(nothing.path(), nothing.path()).unwrap().is_equal(),
            "nothing was compared"
        );
    }

    #[test]
    fn a_tensor_that_differs_is_named() {
        let (a, b) = (run(METRICS, 1), run(METRICS, 2));
        let compared = tensors(a.path(), b.path()).unwrap();
        assert!(!compared.is_equal());
        assert_eq!(compared.differences, ["tensor weight differs"]);
    }

    #[test]
    fn a_checkpoint_that_is_damaged_is_no_result() {
        let (a, b) = (run(METRICS, 1), run(METRICS, 1));
        let shard = b
            .path()
            .join("checkpoints/step-000000002/rank-00000.safetensors");
        let mut bytes = fs_err::read(&shard).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs_err::write(&shard, bytes).unwrap();
        assert!(tensors(a.path(), b.path()).is_err());
    }
}
