//! The status pages of a launch: one for each rank, made here and written by the worker.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use cordee_memory::{MemoryError, SharedMemory, SharedWords};
use cordee_protocol::StatusPage;

/// Status pages for the ranks of one launch. A page may be read whenever, after the launch too.
#[derive(Debug)]
pub struct Pages {
    pages: Vec<(SharedMemory, StatusPage)>,
}

impl Pages {
    /// Blank pages for ranks that have not been started yet.
    pub fn new(world_size: usize) -> Result<Self, MemoryError> {
        let page = |_| {
            let memory = SharedMemory::create("cordee-status")?;
            let words = SharedWords::of(&memory, StatusPage::WORDS)?;
            Ok((memory, StatusPage::new(Arc::new(words))))
        };
        let pages: Result<_, MemoryError> = (0..world_size).map(page).collect();
        Ok(Self { pages: pages? })
    }

    /// All of them, by rank.
    pub fn all(&self) -> Vec<StatusPage> {
        self.pages.iter().map(|(_, page)| page.clone()).collect()
    }

    /// A descriptor of a rank's page, for the worker to inherit.
    pub(crate) fn descriptor(&self, rank: usize) -> io::Result<OwnedFd> {
        self.pages[rank].0.as_fd().try_clone_to_owned()
    }
}
