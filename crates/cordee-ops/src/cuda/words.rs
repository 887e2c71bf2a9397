//! What was uploaded a moment ago.

use super::Resident;

/// Uploads that are remembered. A micro-batch has about a handful: tokens, targets, positions,
/// bounds, and the order of the tokens. The words are kept as long, since a driver that shares the
/// host's page tables may read them after the call that asked for the copy; these are far more
/// micro-batches than a queue of launches is ahead of its device.
const REMEMBERED: usize = 64;

/// The last uploads, by content, the newest last.
#[derive(Default)]
pub(super) struct Uploads {
    entries: Vec<(Vec<u32>, Resident)>,
}

impl Uploads {
    pub(super) fn find(&mut self, words: &[u32]) -> Option<Resident> {
        let index = self.entries.iter().position(|(known, _)| known == words)?;
        let entry = self.entries.remove(index);
        let found = entry.1.again();
        self.entries.push(entry);
        Some(found)
    }

    /// Remembers that `resident` has the words, and returns where these stay.
    pub(super) fn keep(&mut self, words: &[u32], resident: &Resident) -> &[u32] {
        if self.entries.len() == REMEMBERED {
            self.entries.remove(0);
        }
        let place = self.entries.len();
        self.entries.push((words.to_vec(), resident.again()));
        &self.entries[place].0
    }

    /// Forgets the last upload, which failed.
    pub(super) fn forget_last(&mut self) {
        self.entries.pop();
    }
}
