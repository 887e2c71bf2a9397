//! A few words that processes tell each other things with, without asking and without waiting.

use std::sync::{Arc, atomic::AtomicU64};

use crate::{Result, SharedMapping, SharedMemory};

/// 64-bit words at the beginning of a [`SharedMemory`]. Every holder may read and write any of them at
/// any time; clones are the same words.
#[derive(Clone, Debug)]
pub struct SharedWords {
    mapping: Arc<SharedMapping>,
    len: usize,
}

impl SharedWords {
    /// The first `len` words of a memory that serves nothing else; zeros where it is new.
    pub fn of(memory: &SharedMemory, len: usize) -> Result<Self> {
        let mapping = memory.map(0, len * size_of::<AtomicU64>())?;
        Ok(Self { mapping, len })
    }
}

impl AsRef<[AtomicU64]> for SharedWords {
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is aligned to a page, holds `len` words and lives as long as `self`.
        // Any bits are an `AtomicU64`, and nothing but atomics reaches them: this type lends no
        // pointer, and what other processes do to their mappings is outside of Rust's rules, as for
        // every memory that is shared.
        unsafe {
            let first = self.mapping.pointer().cast::<AtomicU64>().as_ptr();
            std::slice::from_raw_parts(first, self.len)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_are_the_same_words() {
        let memory = SharedMemory::create("words").unwrap();
        let [one, two] = [0, 0].map(|_| SharedWords::of(&memory, 5).unwrap());
        assert!(
            one.as_ref()
                .iter()
                .all(|word| word.load(Ordering::Relaxed) == 0)
        );
        one.as_ref()[4].store(7, Ordering::Relaxed);
        assert_eq!(two.as_ref()[4].load(Ordering::Relaxed), 7);
        assert_eq!(two.as_ref().len(), 5);
    }
}
