//! What goes along a rail for each collective.

use std::{ops::Range, ptr};

use cordee_memory::DType;

use super::{
    Machines, Side,
    frame::{Frame, Header, Kind, PIECE_BYTES},
    rail::{Rail, Turn},
};
use crate::{CommError, Operation, Result, shard::shard_range, shared_memory::sum_in_rank_order};

/// Most bytes of what a machine gives to [`Rail::values`].
const VALUE_BYTES: usize = 1 << 30;

/// Memory of the ranks of this machine that a collective is about. Between two meetings, what
/// [`Region::slice`] gives is touched by this rank only.
pub(super) struct Region<'a> {
    pub(super) machines: &'a Machines,
    /// Which of the rails this is.
    pub(super) rail: usize,
    pub(super) dtype: DType,
    /// Where element 0 of each local rank's copy is.
    pub(super) copies: Vec<*mut u8>,
}

impl Region<'_> {
    /// The part of a range that goes over this rail, in pieces.
    fn slice(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let slice = shard_range(range.clone(), self.machines.rails(), self.rail);
        let len = PIECE_BYTES / self.dtype.size_in_bytes();
        let starts = slice.clone().step_by(len);
        starts
            .map(|start| start..(start + len).min(slice.end))
            .collect()
    }

    fn bytes(&self, piece: &Range<usize>) -> usize {
        piece.len() * self.dtype.size_in_bytes()
    }

    /// Where a piece begins in a local rank's copy.
    fn at(&self, local_rank: usize, piece: &Range<usize>) -> *mut u8 {
        self.copies[local_rank].wrapping_add(piece.start * self.dtype.size_in_bytes())
    }

    fn write(&self, data: &[u8], piece: &Range<usize>, targets: impl Iterator<Item = usize>) {
        for target in targets {
            // SAFETY: the copy holds the piece, which has as many bytes (checked by who took the frame), and
            // until the next meeting this rank alone touches it.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.at(target, piece), data.len()) };
        }
    }
}

/// Who gets the sum of a piece.
pub(super) struct Wanted<'a> {
    pub(super) operation: Operation,
    /// The whole of what is summed.
    pub(super) range: &'a Range<usize>,
}

impl Wanted<'_> {
    fn by_rank(&self, machines: &Machines, rank: usize, piece: &Range<usize>) -> bool {
        let shard = || shard_range(self.range.clone(), machines.world_size(), rank);
        self.operation == Operation::AllReduce
            || (shard().start < piece.end && piece.start < shard().end)
    }

    /// Whether a machine up to this one needs a piece.
    fn up_to(&self, machines: &Machines, machine: usize, piece: &Range<usize>) -> bool {
        (0..machines.ranks_of(machine).end).any(|rank| self.by_rank(machines, rank, piece))
    }
}

impl Rail {
    /// Sums `range` over all ranks, in their order: partial sums go up the chain of machines, and sums
    /// come back down.
    pub(super) fn reduce(
        &mut self,
        turn: &mut Turn<'_>,
        region: &Region<'_>,
        range: &Range<usize>,
        wanted: &Wanted<'_>,
    ) -> Result<()> {
        let machines = region.machines;
        let (own, last) = (machines.own(), machines.count() - 1);
        let pieces = region.slice(range);
        let (mut partials, mut sums) = (0, 0);
        self.begin(turn)?;
        while sums < pieces.len() {
            let onward = if own == last {
                Side::Below
            } else {
                Side::Above
            };
            if partials < pieces.len() && self.has_room(onward) {
                let from_below = if own == 0 {
                    None
                } else {
                    self.expect(Side::Below, turn, Kind::Partial, (0, partials))?
                };
                if own == 0 || from_below.is_some() {
                    let piece = &pieces[partials];
                    self.add(turn, region, piece, wanted, (partials, from_below))?;
                    partials += 1;
                    sums += usize::from(own == last);
                    continue;
                }
            }
            if own < last
                && self.has_room(Side::Below)
                && let Some(frame) = self.expect(Side::Above, turn, Kind::Sum, (0, sums))?
            {
                self.pass_down(turn, region, &pieces[sums], wanted, (sums, frame))?;
                sums += 1;
                continue;
            }
            self.wait(turn)?;
        }
        self.finish(turn)
    }

    /// Adds what the ranks of this machine have to a partial sum, and sends it on.
    fn add(
        &mut self,
        turn: &mut Turn<'_>,
        region: &Region<'_>,
        piece: &Range<usize>,
        wanted: &Wanted<'_>,
        (number, from_below): (usize, Option<Frame>),
    ) -> Result<()> {
        let machines = region.machines;
        let (own, is_last) = (machines.own(), machines.own() + 1 == machines.count());
        let mut sources: Vec<*const u8> = Vec::with_capacity(1 + region.copies.len());
        if let Some(frame) = &from_below {
            if frame.data().len() != region.bytes(piece) {
                return Err(self.out_of_order(Side::Below, turn));
            }
            sources.push(frame.data().as_ptr());
        }
        let copies = 0..region.copies.len();
        sources.extend(
            copies
                .clone()
                .map(|local| region.at(local, piece).cast_const()),
        );
        let (kind, onward) = if is_last {
            (Kind::Sum, Side::Below)
        } else {
            (Kind::Partial, Side::Above)
        };
        let header = Header {
            piece: number as u32,
            ..self.header(kind)
        };
        let needed_on = !is_last || (own > 0 && wanted.up_to(machines, own - 1, piece));
        let mut frame = Frame::empty(
            header,
            if needed_on { region.bytes(piece) } else { 0 },
            self.memory(),
        );
        let mut targets = Vec::new();
        if needed_on {
            targets.push(frame.data_mut().as_mut_ptr());
        }
        if is_last {
            let first = machines.ranks_of(own).start;
            let here = copies.filter(|local| wanted.by_rank(machines, first + local, piece));
            targets.extend(here.map(|local| region.at(local, piece)));
        }
        // SAFETY: every copy holds the piece (each rank has checked its range against its buffer, and the calls are
        // equal), and until the next meeting this rank alone touches it; frames have their own memory, of the
        // piece's length and aligned for any number. A target is one of the sources or in another place.
        unsafe { sum_in_rank_order(region.dtype, &sources, &targets, piece.len()) };
        self.push(onward, turn, frame)?;
        match from_below {
            Some(frame) => self.took(Side::Below, turn, frame),
            None => Ok(()),
        }
    }

    /// Puts a sum where it is wanted, and sends it on.
    fn pass_down(
        &mut self,
        turn: &mut Turn<'_>,
        region: &Region<'_>,
        piece: &Range<usize>,
        wanted: &Wanted<'_>,
        (number, frame): (usize, Frame),
    ) -> Result<()> {
        let (machines, own) = (region.machines, region.machines.own());
        let needed_here = wanted.up_to(machines, own, piece);
        let expected = if needed_here { region.bytes(piece) } else { 0 };
        if frame.data().len() != expected {
            return Err(self.out_of_order(Side::Above, turn));
        }
        if needed_here {
            let first = machines.ranks_of(own).start;
            let here = 0..region.copies.len();
            let here = here.filter(|local| wanted.by_rank(machines, first + local, piece));
            region.write(frame.data(), piece, here);
        }
        if own > 0 {
            let needed_on = wanted.up_to(machines, own - 1, piece);
            let data = if needed_on { frame.data() } else { &[] };
            let header = Header {
                piece: number as u32,
                ..self.header(Kind::Sum)
            };
            self.push(Side::Below, turn, Frame::of(header, data, self.memory()))?;
        }
        self.took(Side::Above, turn, frame)
    }

    /// Brings parts of the copies of some ranks into the copies of the ranks of all other machines.
    pub(super) fn spread(
        &mut self,
        turn: &mut Turn<'_>,
        region: &Region<'_>,
        parts: &[(usize, Range<usize>)],
    ) -> Result<()> {
        let machines = region.machines;
        let own = machines.own();
        let of_machine = |machine: usize| -> Vec<(usize, Range<usize>)> {
            let parts = parts
                .iter()
                .filter(|(giver, _)| machines.ranks_of(machine).contains(giver));
            let sliced = parts.flat_map(|(giver, part)| {
                region.slice(part).into_iter().map(|piece| (*giver, piece))
            });
            sliced.collect()
        };
        let pieces: Vec<_> = (0..machines.count()).map(of_machine).collect();
        let mut done = vec![0; machines.count()];
        let first = machines.ranks_of(own).start;
        self.begin(turn)?;
        while (0..pieces.len()).any(|machine| done[machine] < pieces[machine].len()) {
            if let Some((giver, piece)) = pieces[own].get(done[own])
                && self.has_room(Side::Below)
                && self.has_room(Side::Above)
            {
                // SAFETY: the giver's copy holds the piece, and until the next meeting nobody writes it.
                let data = unsafe {
                    std::slice::from_raw_parts(
                        region.at(giver - first, piece).cast_const(),
                        region.bytes(piece),
                    )
                };
                for side in Side::BOTH {
                    let header = Header {
                        origin: own as u16,
                        piece: done[own] as u32,
                        ..self.header(Kind::Part)
                    };
                    self.push(side, turn, Frame::of(header, data, self.memory()))?;
                }
                done[own] += 1;
                continue;
            }
            if !self.take_part(turn, region, &pieces, &mut done)? {
                self.wait(turn)?;
            }
        }
        self.finish(turn)
    }

    /// Takes a part from either side, if one has come and can be passed on.
    fn take_part(
        &mut self,
        turn: &mut Turn<'_>,
        region: &Region<'_>,
        pieces: &[Vec<(usize, Range<usize>)>],
        done: &mut [usize],
    ) -> Result<bool> {
        for side in Side::BOTH {
            if !self.has_room(side.opposite()) {
                continue;
            }
            let Some(frame) = self.take(side, turn)? else {
                continue;
            };
            let Header {
                kind,
                origin,
                piece,
                ..
            } = frame.header;
            let origin = usize::from(origin);
            let expected = pieces
                .get(origin)
                .and_then(|pieces| pieces.get(done[origin]));
            let Some((_, part)) = expected.filter(|(_, part)| {
                (kind, piece as usize, frame.data().len())
                    == (Kind::Part, done[origin], region.bytes(part))
                    && side.has(region.machines, origin)
            }) else {
                return Err(self.out_of_order(side, turn));
            };
            region.write(frame.data(), part, 0..region.copies.len());
            done[origin] += 1;
            self.push(
                side.opposite(),
                turn,
                Frame::of(frame.header, frame.data(), self.memory()),
            )?;
            self.took(side, turn, frame)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// What every machine gave, by machine.
    pub(super) fn values(
        &mut self,
        turn: &mut Turn<'_>,
        machines: &Machines,
        value: &[u8],
    ) -> Result<Vec<Vec<u8>>> {
        let own = machines.own();
        let mut values = vec![Vec::new(); machines.count()];
        let mut pieces = vec![0_u32; machines.count()];
        let mut complete = vec![false; machines.count()];
        let mut left = value;
        self.begin(turn)?;
        while !complete.iter().all(|complete| *complete) {
            if !complete[own] && self.has_room(Side::Below) && self.has_room(Side::Above) {
                let (piece, rest) = left.split_at(left.len().min(PIECE_BYTES));
                left = rest;
                complete[own] = rest.is_empty();
                let header = Header {
                    origin: own as u16,
                    piece: pieces[own],
                    ..self.header(if rest.is_empty() {
                        Kind::LastValue
                    } else {
                        Kind::Value
                    })
                };
                for side in Side::BOTH {
                    self.push(side, turn, Frame::of(header, piece, self.memory()))?;
                }
                pieces[own] += 1;
                continue;
            }
            let mut came = false;
            for side in Side::BOTH {
                if !self.has_room(side.opposite()) {
                    continue;
                }
                let Some(frame) = self.take(side, turn)? else {
                    continue;
                };
                let header = frame.header;
                let origin = usize::from(header.origin);
                let fits = matches!(header.kind, Kind::Value | Kind::LastValue)
                    && side.has(machines, origin)
                    && !complete[origin]
                    && pieces[origin] == header.piece
                    && values[origin].len() + frame.data().len() <= VALUE_BYTES;
                if !fits {
                    return Err(self.out_of_order(side, turn));
                }
                values[origin].extend_from_slice(frame.data());
                pieces[origin] += 1;
                complete[origin] = header.kind == Kind::LastValue;
                self.push(
                    side.opposite(),
                    turn,
                    Frame::of(header, frame.data(), self.memory()),
                )?;
                self.took(side, turn, frame)?;
                came = true;
            }
            if !came {
                self.wait(turn)?;
            }
        }
        self.finish(turn)?;
        values[own] = value.to_vec();
        Ok(values)
    }

    /// The next frame from a side, which must be this one.
    fn expect(
        &mut self,
        side: Side,
        turn: &Turn<'_>,
        kind: Kind,
        (origin, piece): (u16, usize),
    ) -> Result<Option<Frame>> {
        let Some(frame) = self.take(side, turn)? else {
            return Ok(None);
        };
        let header = Header {
            origin,
            piece: piece as u32,
            ..self.header(kind)
        };
        if frame.header == header {
            Ok(Some(frame))
        } else {
            Err(self.out_of_order(side, turn))
        }
    }
}

/// An error that says of which rank it is news.
pub(super) fn root_of(error: &CommError, rank: usize) -> (usize, String) {
    match error {
        CommError::PeerFailed { peer, reason, .. } => (*peer, reason.clone()),
        CommError::Timeout { missing, .. } => {
            (*missing.first().unwrap_or(&rank), error.to_string())
        }
        error => (rank, error.to_string()),
    }
}
