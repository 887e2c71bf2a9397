//! Meetings: the one way in which ranks wait for each other.
//!
//! A rank writes which call it is in, counts itself as arrived, and sleeps until the last rank has
//! arrived and moved the epoch on. Then all ranks read all calls and compare. What a rank wrote for
//! one meeting may be read until the reader arrives at the next, so it is kept for two.
//!
//! Ranks are numbered within the machine, and within the world in errors.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{io::Errno, thread::futex};

use super::{
    Seat,
    control::{Control, Words},
    journal,
};
use crate::{Call, CommError, Records, Result, call::CALL_WORDS};

/// Longest single sleep while waiting for other ranks.
const SLICE: Duration = Duration::from_secs(1);

/// How often a rank looks before it sleeps: about a microsecond, less than sleeping costs.
const LOOKS: u32 = 32;

/// One rank's seat at the meetings of its group.
#[derive(Debug)]
pub(crate) struct Meeting {
    control: Control,
    seat: Seat,
    timeout: Duration,
    /// Meetings this rank has been through.
    met: u32,
    /// 0 where ranks outnumber cores: the rank that is waited for may need this core.
    looks: u32,
}

impl Meeting {
    pub(super) fn new(control: Control, seat: Seat, timeout: Duration) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let looks = if seat.local_size > cores { 0 } else { LOOKS };
        Self {
            control,
            seat,
            timeout,
            met: 0,
            looks,
        }
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// This rank among those of the machine.
    pub(crate) fn local_rank(&self) -> usize {
        self.seat.local_rank
    }

    /// Ranks of the machine.
    pub(crate) fn local_size(&self) -> usize {
        self.seat.local_size
    }

    /// How long a rank waits for others.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Says that this rank gives up, and wakes whoever sleeps.
    pub(crate) fn fail(&self, reason: &str) {
        self.control.fail(self.seat.local_rank, reason);
    }

    /// An error once a rank of this machine has failed.
    pub(crate) fn check(&self, call: &Call) -> Result<()> {
        match self.control.first_failed() {
            None => Ok(()),
            Some(_) => Err(self.peer_failed(call)),
        }
    }

    /// Where every rank of this machine stands.
    pub(crate) fn records(&self) -> Records {
        journal::records(&self.control, &self.seat)
    }

    /// Which of two halves belongs to the coming meeting. What a rank writes there before the
    /// meeting, others may read until they arrive at the one after.
    pub(super) fn half(&self) -> usize {
        (self.met & 1) as usize
    }

    /// The number that `rank` gave to the last meeting.
    pub(super) fn extra_of(&self, rank: usize) -> u64 {
        self.control.page(rank).extras[1 - self.half()].load(Ordering::Relaxed)
    }

    /// Returns when every rank is in the same call. What any rank wrote before, all may read after.
    pub(crate) fn meet(&mut self, call: &Call, extra: u64) -> Result<()> {
        let header = self.control.header();
        if header.epoch.0.load(Ordering::Acquire) & 1 == 1 {
            return Err(self.peer_failed(call));
        }
        let half = self.half();
        let own = self.control.page(self.seat.local_rank);
        for (target, word) in own.calls[half].iter().zip(call.to_words()) {
            target.store(word, Ordering::Relaxed);
        }
        own.extras[half].store(extra, Ordering::Relaxed);

        // The chain of increments carries every rank's writes to the last one to arrive; the epoch
        // carries them from there to all. `met` comes after, so that a rank that dies on the way
        // is named as missing.
        let met = self.met.wrapping_add(1);
        let arrived = header.arrived.0.fetch_add(1, Ordering::AcqRel) + 1;
        if arrived as usize == self.local_size() {
            header.arrived.0.store(0, Ordering::Relaxed);
            header.epoch.0.fetch_add(2, Ordering::AcqRel);
            own.met.store(met, Ordering::Release);
            self.control.wake_all();
        } else {
            own.met.store(met, Ordering::Release);
            self.wait(call)?;
        }
        self.met = met;
        self.compare(half)
    }

    /// Sleeps until the epoch moves on.
    fn wait(&self, call: &Call) -> Result<()> {
        let epoch = &self.control.header().epoch.0;
        let mut waited = Duration::ZERO;
        let mut looks = self.looks;
        loop {
            let seen = epoch.load(Ordering::Acquire);
            if self.is_over(seen) {
                return Ok(());
            }
            if seen & 1 == 1 {
                return Err(self.peer_failed(call));
            }
            if looks > 0 {
                looks -= 1;
                std::hint::spin_loop();
                continue;
            }
            let left = self.timeout.saturating_sub(waited);
            if left.is_zero() {
                let missing = self.missing();
                // The last rank may have come since the last look.
                if self.is_over(epoch.load(Ordering::Acquire)) {
                    return Ok(());
                }
                return Err(CommError::Timeout {
                    rank: self.seat.rank(),
                    call: Box::new(call.clone()),
                    waited,
                    missing,
                    records: self.records(),
                });
            }
            let (slice, asleep) = (left.min(SLICE), Instant::now());
            sleep(epoch, seen, slice);
            // A job that a scheduler suspends for an hour has not waited for anyone in that hour:
            // of a sleep that took longer than asked, only what was asked counts.
            waited += asleep.elapsed().min(slice);
        }
    }

    /// Whether the meeting that this rank waits for has taken place by the epoch `seen`. The epoch
    /// counts in steps of two and wraps, so that its upper 31 bits are compared.
    fn is_over(&self, seen: u32) -> bool {
        seen >> 1 != self.met & (u32::MAX >> 1)
    }

    fn peer_failed(&self, call: &Call) -> CommError {
        let (peer, reason) = self
            .control
            .first_failed()
            .unwrap_or_else(|| (self.seat.local_rank, "its reason cannot be read".to_owned()));
        CommError::PeerFailed {
            rank: self.seat.rank(),
            call: Box::new(call.clone()),
            peer: self.seat.first_rank + peer,
            reason,
        }
    }

    /// The ranks that have not come to this meeting; one that has gone on since is not among them.
    fn missing(&self) -> Vec<usize> {
        let came_last = |rank| self.control.page(rank).met.load(Ordering::Acquire);
        (0..self.local_size())
            .filter(|&rank| came_last(rank) == self.met)
            .map(|rank| self.seat.first_rank + rank)
            .collect()
    }

    /// Finds a rank that was in another call than rank 0. Every rank finds the same one.
    fn compare(&self, half: usize) -> Result<()> {
        let words = |rank: usize| read(&self.control.page(rank).calls[half]);
        let first = words(0);
        let Some(second) = (1..self.local_size()).find(|&rank| words(rank) != first) else {
            return Ok(());
        };
        let tell = |words| {
            Call::from_words(words).map_or("an unknown call".to_owned(), |call| call.to_string())
        };
        Err(CommError::Mismatch {
            rank: self.seat.rank(),
            first: self.seat.first_rank,
            first_call: tell(first),
            second: self.seat.first_rank + second,
            second_call: tell(words(second)),
        })
    }
}

fn read(words: &Words) -> [u64; CALL_WORDS] {
    std::array::from_fn(|index| words[index].load(Ordering::Relaxed))
}

/// Sleeps until somebody wakes the sleepers of `word`, unless it no longer holds `seen`.
fn sleep(word: &AtomicU32, seen: u32, at_most: Duration) {
    let timeout = futex::Timespec {
        tv_sec: at_most.as_secs() as i64,
        tv_nsec: at_most.subsec_nanos().into(),
    };
    match futex::wait(word, futex::Flags::empty(), seen, Some(&timeout)) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
        // A system without futexes between processes: look again in a while.
        Err(_) => thread::sleep(at_most.min(Duration::from_millis(1))),
    }
}
