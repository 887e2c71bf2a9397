//! What the launcher hands to each worker, beside who it is.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::PathBuf,
};

use anyhow::Context;
use cordee_config::Plan;
use serde::{Deserialize, Serialize};

/// A training job, the same for every rank.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) plan: Plan,
    /// The directory of the prepared corpus.
    pub(crate) corpus: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) resume: Option<PathBuf>,
    pub(crate) last_step: u64,
    /// What was said before there were ranks, for the record.
    pub(crate) warnings: Vec<String>,
}

impl Job {
    /// Puts the job into anonymous memory that workers inherit: it appears in no argument list, in
    /// no environment and on no disk.
    pub(crate) fn to_fd(&self) -> anyhow::Result<OwnedFd> {
        let text = serde_json::to_vec(self)?;
        let fd = rustix::fs::memfd_create("cordee-job", rustix::fs::MemfdFlags::CLOEXEC)
            .context("memfd_create for the job")?;
        let file = File::from(fd);
        file.write_all_at(&text, 0).context("writing the job")?;
        Ok(file.into())
    }

    /// Reads the job that the launcher left in `file`.
    pub(crate) fn from_file(file: &File) -> anyhow::Result<Self> {
        let mut text = vec![0; file.metadata()?.len() as usize];
        file.read_exact_at(&mut text, 0)?;
        Ok(serde_json::from_slice(&text)?)
    }
}
