//! The collectives themselves: who reads and writes which bytes between which meetings.

use std::{ops::Range, ptr};

use cordee_memory::{Buffer, DType};

use super::{Peers, SCRATCH_BYTES, sum::sum_in_rank_order};
use crate::{Call, Operation, Place, Result, shard_range};

impl Peers {
    /// All-reduce and reduce-scatter: rank *r* sums shard *r*, and writes it into all copies or
    /// only into its own.
    pub(super) fn reduce(&mut self, call: &Call, buffer: &mut Buffer) -> Result<()> {
        let Some(place) = &call.place else {
            return Ok(());
        };
        match place.allocation {
            None => self.reduce_staged(call, place, buffer),
            Some(index) => self.in_place(index, |peers| {
                let shard = peers.shard(&place.range, peers.meeting.local_rank());
                let copies = peers.copies(index, place.dtype, shard.start);
                let own = peers.meeting.local_rank();
                let targets = if call.operation == Operation::AllReduce {
                    &copies[..]
                } else {
                    &copies[own..=own]
                };
                let sources: Vec<_> = copies.iter().map(|copy| copy.cast_const()).collect();
                peers.meeting.meet(call, 0)?;
                // SAFETY: every copy holds the shard (every rank has checked its range against its
                // buffer, and the calls are equal). All ranks are in this call, with their buffers
                // lent; until the next meeting this shard of all copies is touched by this rank only.
                unsafe { sum_in_rank_order(place.dtype, &sources, targets, shard.len()) };
                peers.meeting.meet(call, 0)
            }),
        }
    }

    /// Rank *r*'s shard *r* goes to all.
    pub(super) fn all_gather(&mut self, call: &Call, buffer: &mut Buffer) -> Result<()> {
        let Some(place) = &call.place else {
            return Ok(());
        };
        let shards: Vec<_> = (0..self.meeting.local_size())
            .map(|rank| (rank, self.shard(&place.range, rank)))
            .collect();
        self.copy_from(call, buffer, &shards)
    }

    /// Rank `root`'s range goes to all.
    pub(super) fn broadcast(
        &mut self,
        call: &Call,
        buffer: &mut Buffer,
        root: usize,
    ) -> Result<()> {
        let Some(place) = &call.place else {
            return Ok(());
        };
        self.copy_from(call, buffer, &[(root, place.range.clone())])
    }

    /// Each part goes from the rank beside it to all others.
    fn copy_from(
        &mut self,
        call: &Call,
        buffer: &mut Buffer,
        parts: &[(usize, Range<usize>)],
    ) -> Result<()> {
        let Some(place) = &call.place else {
            return Ok(());
        };
        let Some(index) = place.allocation else {
            return self.copy_staged(call, place.dtype, buffer, parts);
        };
        self.in_place(index, |peers| {
            let rank = peers.meeting.local_rank();
            let size = place.dtype.size_in_bytes();
            peers.meeting.meet(call, 0)?;
            for (giver, part) in parts.iter().filter(|(giver, _)| *giver != rank) {
                let copies = peers.copies(index, place.dtype, part.start);
                // SAFETY: both copies hold the part. Until the next meeting the giver's is written by
                // nobody, and this rank's is touched by this rank only, with the buffer lent to it.
                unsafe {
                    ptr::copy_nonoverlapping(
                        copies[*giver].cast_const(),
                        copies[rank],
                        part.len() * size,
                    );
                };
            }
            peers.meeting.meet(call, 0)
        })
    }

    /// Runs a collective on an allocation in place. When it fails, peers that have not noticed yet
    /// may go on writing, so this rank's copy is cut off from them before its owner sees it again.
    pub(crate) fn in_place(
        &mut self,
        index: usize,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let result = work(self);
        if result.is_err() {
            let allocation = &self.allocations[index];
            let start = self.meeting.local_rank() * allocation.stride;
            // SAFETY: the only buffer in this range is lent to the collective as `&mut`, so that
            // nobody holds a reference into it.
            let detached = unsafe { allocation.mapping.detach(start..start + allocation.stride) };
            assert!(
                detached.is_ok(),
                "memory that other ranks may still write could not be cut off: {detached:?}"
            );
        }
        result
    }

    /// Element `element` of every rank's copy.
    pub(crate) fn copies(&self, index: usize, dtype: DType, element: usize) -> Vec<*mut u8> {
        let allocation = &self.allocations[index];
        let offset = element * dtype.size_in_bytes();
        (0..self.meeting.local_size())
            .map(|rank| allocation.copy(rank).wrapping_add(offset))
            .collect()
    }

    fn shard(&self, range: &Range<usize>, rank: usize) -> Range<usize> {
        shard_range(range.clone(), self.meeting.local_size(), rank)
    }

    /// First byte of a rank's scratch area, in the half that belongs to the coming meeting.
    pub(crate) fn scratch(&self, rank: usize) -> *mut u8 {
        self.scratch_half(rank, self.meeting.half())
    }

    /// The same, of the meeting that was last.
    fn scratch_met(&self, rank: usize) -> *mut u8 {
        self.scratch_half(rank, 1 - self.meeting.half())
    }

    fn scratch_half(&self, rank: usize, half: usize) -> *mut u8 {
        self.scratch
            .pointer()
            .as_ptr()
            .wrapping_add((2 * rank + half) * SCRATCH_BYTES)
    }

    /// [`Self::reduce`] for private buffers. In each round every rank puts a piece of every shard
    /// into its scratch area, and sums the pieces of its own shard.
    fn reduce_staged(&mut self, call: &Call, place: &Place, buffer: &mut Buffer) -> Result<()> {
        let (rank, world_size) = (self.meeting.local_rank(), self.meeting.local_size());
        let size = place.dtype.size_in_bytes();
        let shards: Vec<_> = (0..world_size)
            .map(|rank| self.shard(&place.range, rank))
            .collect();
        let piece_len = SCRATCH_BYTES / size / world_size;
        let rounds = shards
            .iter()
            .map(|shard| shard.len().div_ceil(piece_len))
            .max()
            .unwrap_or(0);
        // An empty range still meets once, so that a mismatch is found.
        for round in 0..rounds.max(1) {
            let pieces: Vec<_> = shards
                .iter()
                .map(|shard| piece(shard, round, piece_len))
                .collect();
            let scratch: Vec<_> = (0..world_size).map(|rank| self.scratch(rank)).collect();
            for (index, piece) in pieces.iter().enumerate() {
                let bytes = &bytes_of(buffer)[piece.start * size..piece.end * size];
                // SAFETY: piece `index` begins after `index` full pieces and all `world_size` fit
                // in the scratch area; this half of it is this rank's own until the next meeting.
                unsafe { copy_in(bytes, scratch[rank].add(index * piece_len * size)) };
            }
            self.meeting.meet(call, 0)?;
            let own: Vec<_> = scratch
                .iter()
                .map(|area| area.wrapping_add(rank * piece_len * size))
                .collect();
            let sources: Vec<_> = own.iter().map(|area| area.cast_const()).collect();
            let everywhere = call.operation == Operation::AllReduce;
            let targets = if everywhere {
                &own[..]
            } else {
                &own[rank..=rank]
            };
            // SAFETY: each scratch area holds this piece, aligned since it is a whole number of
            // elements from a page; until the next meeting only this rank touches it.
            unsafe { sum_in_rank_order(place.dtype, &sources, targets, pieces[rank].len()) };
            self.meeting.meet(call, 0)?;
            for (index, piece) in pieces
                .iter()
                .enumerate()
                .filter(|(index, _)| everywhere || *index == rank)
            {
                let bytes = &mut bytes_of_mut(buffer)[piece.start * size..piece.end * size];
                // SAFETY: as for copying in; others wrote it before the meeting and are done.
                unsafe { copy_out(scratch[rank].add(index * piece_len * size), bytes) };
            }
        }
        Ok(())
    }

    /// [`Self::copy_from`] for private buffers: givers put a piece into their scratch area, the
    /// others take it. One meeting a round, since the halves take turns.
    fn copy_staged(
        &mut self,
        call: &Call,
        dtype: DType,
        buffer: &mut Buffer,
        parts: &[(usize, Range<usize>)],
    ) -> Result<()> {
        let (rank, size) = (self.meeting.local_rank(), dtype.size_in_bytes());
        let piece_len = SCRATCH_BYTES / size;
        let rounds = parts
            .iter()
            .map(|(_, part)| part.len().div_ceil(piece_len))
            .max()
            .unwrap_or(0);
        for round in 0..rounds.max(1) {
            let pieces = || {
                parts.iter().map(|(giver, part)| {
                    let piece = piece(part, round, piece_len);
                    (*giver, piece.start * size..piece.end * size)
                })
            };
            for (_, bytes) in pieces().filter(|(giver, _)| *giver == rank) {
                // SAFETY: a piece fits in the scratch area, of which this half is this rank's own
                // until the next meeting.
                unsafe { copy_in(&bytes_of(buffer)[bytes], self.scratch(rank)) };
            }
            self.meeting.meet(call, 0)?;
            for (giver, bytes) in pieces().filter(|(giver, _)| *giver != rank) {
                // SAFETY: the giver wrote it before the meeting, and writes that half again only
                // after this rank has arrived at the next.
                unsafe { copy_out(self.scratch_met(giver), &mut bytes_of_mut(buffer)[bytes]) };
            }
        }
        Ok(())
    }

    pub(super) fn sum_scalars(&mut self, call: &Call, values: &mut [f64]) -> Result<()> {
        let (rank, world_size) = (self.meeting.local_rank(), self.meeting.local_size());
        let rounds = values.len().div_ceil(SCRATCH_BYTES / size_of::<f64>());
        for round in 0..rounds.max(1) {
            let piece = piece(&(0..values.len()), round, SCRATCH_BYTES / size_of::<f64>());
            let values = &mut values[piece];
            // SAFETY: the piece fits in the scratch area, of which this half is this rank's own
            // until the next meeting.
            unsafe {
                ptr::copy_nonoverlapping(values.as_ptr(), self.scratch(rank).cast(), values.len());
            };
            self.meeting.meet(call, 0)?;
            let sources: Vec<_> = (0..world_size)
                .map(|rank| self.scratch_met(rank).cast_const())
                .collect();
            // SAFETY: every rank wrote as many values before the meeting, and writes that half
            // again only after this rank has arrived at the next; the target is this rank's alone.
            unsafe {
                sum_in_rank_order(
                    DType::F64,
                    &sources,
                    &[values.as_mut_ptr().cast()],
                    values.len(),
                );
            };
        }
        Ok(())
    }

    pub(crate) fn gather_bytes(&mut self, call: &Call, value: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (rank, world_size) = (self.meeting.local_rank(), self.meeting.local_size());
        let mut gathered = vec![Vec::new(); world_size];
        let mut lens = vec![value.len(); world_size];
        let mut round = 0;
        while round == 0 || lens.iter().any(|&len| len > round * SCRATCH_BYTES) {
            // SAFETY: the piece fits in the scratch area, of which this half is this rank's own
            // until the next meeting.
            unsafe {
                copy_in(
                    &value[piece(&(0..value.len()), round, SCRATCH_BYTES)],
                    self.scratch(rank),
                );
            };
            self.meeting.meet(call, value.len() as u64)?;
            for (giver, (taken, len)) in gathered.iter_mut().zip(&mut lens).enumerate() {
                *len = self.meeting.extra_of(giver) as usize;
                let start = taken.len();
                taken.resize(start + piece(&(0..*len), round, SCRATCH_BYTES).len(), 0);
                // SAFETY: a piece is no longer than the scratch area; the giver wrote it before the
                // meeting, and writes that half again only after this rank has arrived at the next.
                unsafe { copy_out(self.scratch_met(giver), &mut taken[start..]) };
            }
            round += 1;
        }
        Ok(gathered)
    }
}

/// The part of `range` that a round handles, empty once the range is through.
fn piece(range: &Range<usize>, round: usize, len: usize) -> Range<usize> {
    let start = range.start.saturating_add(round * len).min(range.end);
    start..start.saturating_add(len).min(range.end)
}

/// # Safety
///
/// `target` is valid for as many bytes, and nobody else touches them meanwhile.
unsafe fn copy_in(bytes: &[u8], target: *mut u8) {
    // SAFETY: the caller's word; `bytes` is private memory, so they do not overlap.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
}

/// # Safety
///
/// `source` is valid for as many bytes, and nobody else writes them meanwhile.
unsafe fn copy_out(source: *const u8, bytes: &mut [u8]) {
    // SAFETY: the caller's word; `bytes` is private memory, so they do not overlap.
    unsafe { ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) };
}

const ON_HOST: &str = "a call begins with a look at where its buffer is";

fn bytes_of(buffer: &Buffer) -> &[u8] {
    buffer.as_bytes().expect(ON_HOST)
}

fn bytes_of_mut(buffer: &mut Buffer) -> &mut [u8] {
    buffer.as_mut_bytes().expect(ON_HOST)
}
