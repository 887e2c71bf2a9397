//! What was found out, and what of it is a problem.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{gpus, worker_program::how_to_get};

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    /// Whether this build computes on GPUs.
    pub(super) cuda: bool,
    pub(super) machine: Machine,
    pub(super) driver: Driver,
    /// Of a build with CUDA.
    pub(super) worker: Option<Worker>,
    pub(super) libraries: Vec<Library>,
    /// Directories that were searched, with who named them.
    pub(super) searched: Vec<(PathBuf, String)>,
}

#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) host: String,
    pub(super) system: String,
    pub(super) processor: Option<String>,
    pub(super) avx512: bool,
    /// That this process may use.
    pub(super) cores: Option<usize>,
    /// Bytes that this process may use.
    pub(super) memory: Option<u64>,
    pub(super) directory: PathBuf,
    /// Bytes free in that directory.
    pub(super) free_disk: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Driver {
    Works(gpus::Driver),
    Missing { why: String },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Worker {
    Found {
        path: PathBuf,
        /// Files that its own file names.
        needs: Vec<String>,
    },
    Missing {
        why: String,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct Library {
    pub(super) file: String,
    pub(super) title: String,
    pub(super) used_for: &'static str,
    /// Whether the worker does not start without it.
    pub(super) needed: bool,
    pub(super) version: Option<String>,
    /// Its path, and who named the directory.
    pub(super) found: Option<(PathBuf, String)>,
}

/// Something that keeps this build from doing what it is made for.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) hint: Option<String>,
}

impl Report {
    /// What this build needs and this machine lacks; a build for the CPU needs nothing.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !self.cuda {
            return problems;
        }
        let mut add = |what: String, hint: Option<String>| problems.push(Problem { what, hint });
        match &self.driver {
            Driver::Missing { why } => add(format!("NVIDIA's driver: {why}"), None),
            Driver::Works(driver) if driver.gpus.is_empty() => {
                add("the driver shows no GPU".to_owned(), None);
            }
            Driver::Works(driver) => {
                if let (Some(offered), Some(asked)) = (driver.cuda_major(), self.cuda_major())
                    && offered < asked
                {
                    add(
                        format!(
                            "the driver offers CUDA {offered}, and this build is for CUDA {asked}"
                        ),
                        Some("a newer driver runs older CUDA, not the other way round".to_owned()),
                    );
                }
            }
        }
        if let Some(Worker::Missing { why }) = &self.worker {
            add(why.clone(), None);
        }
        let missing: Vec<&str> = self
            .libraries
            .iter()
            .filter(|library| library.needed && library.found.is_none())
            .map(|library| library.file.as_str())
            .collect();
        if !missing.is_empty() {
            let hint = how_to_get(&missing);
            add(
                format!("libraries are missing: {}", missing.join(", ")),
                Some(hint),
            );
        }
        problems
    }

    /// The release of CUDA that the worker was built for.
    fn cuda_major(&self) -> Option<u32> {
        let runtime = self.libraries.iter().find(|library| {
            library.needed
                && ["libcudart.so.", "libcublas.so."]
                    .iter()
                    .any(|start| library.file.starts_with(start))
        })?;
        runtime.file.rsplit('.').next()?.parse().ok()
    }

    pub(super) fn json(&self) -> Value {
        let problems = self.problems();
        let mut value = json!(self);
        value["passed"] = json!(problems.is_empty());
        value["problems"] = json!(problems);
        value
    }
}

impl gpus::Driver {
    fn cuda_major(&self) -> Option<u32> {
        self.cuda.as_ref()?.split('.').next()?.parse().ok()
    }
}
