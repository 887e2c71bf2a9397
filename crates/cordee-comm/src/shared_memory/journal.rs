//! What a rank notes of its calls for all others to read: the last of them, how far they are done, and a
//! digest of all of them, so that ranks that went different ways are found out without waiting for each
//! other.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{
    Seat,
    control::{Control, Words},
};
use crate::{Call, CommError, Record, Records, Result, call::CALL_WORDS};

/// Calls that are kept.
const KEPT: u64 = 64;

/// One call. Written by its rank while others may read; `sequence` is 0 meanwhile.
#[derive(Debug)]
#[repr(C)]
struct Entry {
    /// The number of the call, once the rest is there.
    sequence: AtomicU64,
    words: Words,
    /// Of this call and all before it.
    digest: AtomicU64,
}

/// What a rank noted; zeros are an empty one.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Journal {
    begun: AtomicU64,
    completed: AtomicU64,
    entries: [Entry; KEPT as usize],
}

impl Journal {
    /// Notes a call. By the rank whose journal it is, in the order of its calls.
    pub(super) fn begin(&self, call: &Call) {
        let words = call.to_words();
        let before = self.read(self.begun.load(Ordering::Relaxed));
        let digest = digest(before.map_or(0, |(_, digest)| digest), &words);
        let entry = self.entry(call.sequence);
        entry.sequence.store(0, Ordering::Relaxed);
        // Who sees any of what follows sees the zero.
        fence(Ordering::Release);
        for (target, word) in entry.words.iter().zip(words) {
            target.store(word, Ordering::Relaxed);
        }
        entry.digest.store(digest, Ordering::Relaxed);
        entry.sequence.store(call.sequence, Ordering::Release);
        self.begun.store(call.sequence, Ordering::Release);
    }

    /// Notes that all calls up to this number are done.
    pub(super) fn complete(&self, sequence: u64) {
        self.completed.store(sequence, Ordering::Release);
    }

    fn entry(&self, sequence: u64) -> &Entry {
        &self.entries[(sequence % KEPT) as usize]
    }

    /// A call's words and digest, unless another has taken their place.
    fn read(&self, sequence: u64) -> Option<([u64; CALL_WORDS], u64)> {
        let entry = self.entry(sequence);
        if sequence == 0 || entry.sequence.load(Ordering::Acquire) != sequence {
            return None;
        }
        let words = std::array::from_fn(|index| entry.words[index].load(Ordering::Relaxed));
        let digest = entry.digest.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (entry.sequence.load(Ordering::Relaxed) == sequence).then_some((words, digest))
    }

    fn record(&self, rank: usize) -> Record {
        let completed = self.completed.load(Ordering::Acquire);
        let begun = self.read(self.begun.load(Ordering::Acquire));
        Record {
            rank,
            begun: begun.and_then(|(words, _)| Call::from_words(words)),
            completed,
        }
    }
}

/// FNV-1a over words, <http://www.isthe.com/chongo/tech/comp/fnv/>: not against malice.
fn digest(before: u64, words: &[u64]) -> u64 {
    let start = before ^ 0xcbf2_9ce4_8422_2325;
    let step = |digest: u64, word: &u64| (digest ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    // The multiplication alone carries nothing downwards.
    words
        .iter()
        .fold(start, |digest, word| step(digest, word) ^ (digest >> 32))
}

/// Where every rank stands.
pub(super) fn records(control: &Control, seat: &Seat) -> Records {
    let ranks = 0..seat.local_size;
    Records(
        ranks
            .map(|rank| control.page(rank).journal.record(seat.first_rank + rank))
            .collect(),
    )
}

/// Finds a rank that made other calls than this one, as far as both have come.
pub(super) fn compare(control: &Control, seat: &Seat) -> Result<()> {
    let rank = seat.local_rank;
    let own = &control.page(rank).journal;
    let own_begun = own.begun.load(Ordering::Relaxed);
    for peer in (0..seat.local_size).filter(|&peer| peer != rank) {
        let other = &control.page(peer).journal;
        let last = own_begun.min(other.begun.load(Ordering::Acquire));
        let both = |sequence| Some((own.read(sequence)?, other.read(sequence)?));
        let differs = |sequence: &u64| both(*sequence).is_some_and(|(own, other)| own.1 != other.1);
        if !differs(&last) {
            continue;
        }
        // The first that is still there; what came after differs in its digest alone.
        let first = (last.saturating_sub(KEPT)..=last)
            .find(differs)
            .unwrap_or(last);
        let Some((own_call, other_call)) = both(first) else {
            continue;
        };
        let tell = |words| {
            Call::from_words(words).map_or("an unknown call".to_owned(), |call| call.to_string())
        };
        let [mut one, mut two] = [(rank, tell(own_call.0)), (peer, tell(other_call.0))]
            .map(|(local, call)| (seat.first_rank + local, call));
        if one.0 > two.0 {
            std::mem::swap(&mut one, &mut two);
        }
        return Err(CommError::Mismatch {
            rank: seat.rank(),
            first: one.0,
            first_call: one.1,
            second: two.0,
            second_call: two.1,
        });
    }
    Ok(())
}
