//! What was uploaded a moment ago.

use super::Resident;

/// Uploads that are remembered. A micro-batch has about a handful: tokens, targets, positions,
/// bounds, and the order of the tokens.
const REMEMBERED: usize = 16;

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

    pub(super) fn keep(&mut self, words: &[u32], resident: &Resident) {
        if self.entries.len() == REMEMBERED {
            self.entries.remove(0);
        }
        self.entries.push((words.to_vec(), resident.again()));
    }
}
