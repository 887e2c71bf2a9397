//! The same from many ranks, said once.

use std::collections::{BTreeSet, VecDeque};

/// Different texts that are remembered; a run that says more new things than that repeats itself
/// at worst.
const REMEMBERED: usize = 64;

/// Which ranks said what.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    said: VecDeque<Said>,
}

/// A text, and who said it.
#[derive(Debug)]
struct Said {
    text: String,
    first: usize,
    others: BTreeSet<usize>,
    /// Whether it goes with another text, so that its repetition is not worth a word.
    secondary: bool,
}

impl Repeats {
    /// Takes note that a rank says this; whether nobody has said it before.
    pub(super) fn is_new(&mut self, rank: usize, text: &str) -> bool {
        self.note(rank, text, false)
    }

    /// The same for what a rank says along with something else.
    pub(super) fn is_new_beside(&mut self, rank: usize, text: &str) -> bool {
        self.note(rank, text, true)
    }

    /// Whether this was said along with something else.
    pub(super) fn was_said_beside(&self, text: &str) -> bool {
        let mut said = self.said.iter();
        !text.is_empty() && said.any(|said| said.secondary && said.text == text)
    }

    fn note(&mut self, rank: usize, text: &str, secondary: bool) -> bool {
        if let Some(said) = self.said.iter_mut().find(|said| said.text == text) {
            if rank != said.first {
                said.others.insert(rank);
            }
            said.secondary |= secondary;
            return false;
        }
        if self.said.len() == REMEMBERED {
            self.said.pop_front();
        }
        let (text, others) = (text.to_owned(), BTreeSet::new());
        self.said.push_back(Said {
            text,
            first: rank,
            others,
            secondary,
        });
        true
    }

    /// What more than one rank said: the text, the rank it was shown for, and the others. All is
    /// forgotten.
    pub(super) fn take(&mut self) -> Vec<(String, usize, Vec<usize>)> {
        let said = self
            .said
            .drain(..)
            .filter(|said| !said.others.is_empty() && !said.secondary);
        said.map(|said| (said.text, said.first, said.others.into_iter().collect()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{REMEMBERED, Repeats};

    #[test]
    fn what_many_ranks_say_is_new_once_and_their_ranks_are_kept() {
        let mut repeats = Repeats::default();
        assert!(repeats.is_new(2, "no data"));
        assert!(!repeats.is_new(3, "no data"));
        assert!(!repeats.is_new(0, "no data"));
        assert!(!repeats.is_new(2, "no data"));
        assert!(repeats.is_new(1, "no room"));
        assert!(repeats.is_new_beside(2, "make room"));
        assert!(!repeats.is_new(3, "make room"));
        assert_eq!(repeats.take(), [("no data".to_owned(), 2, vec![0, 3])]);
        assert!(repeats.is_new(0, "no data"));
    }

    #[test]
    fn a_run_that_never_repeats_itself_does_not_fill_the_memory() {
        let mut repeats = Repeats::default();
        for index in 0..1000 {
            assert!(repeats.is_new(0, &index.to_string()));
        }
        assert_eq!(repeats.said.len(), REMEMBERED);
    }
}
