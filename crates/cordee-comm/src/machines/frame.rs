//! What goes over a connection between two ranks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::call::CALL_WORDS;

/// Most bytes of data in a frame. A multiple of the size of every type.
pub(super) const PIECE_BYTES: usize = 256 * 1024;

/// Bytes before the data. A multiple of the alignment of every type.
pub(super) const HEADER_BYTES: usize = 16;

/// Bytes of a call in numbers.
pub(super) const CALL_BYTES: usize = CALL_WORDS * size_of::<u64>();

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Who the other end is: the first frame of all.
    Introduction = 1,
    /// Which call the other end has begun: the first frame of each.
    Call,
    /// A sum over the machines so far.
    Partial,
    /// A sum over all machines.
    Sum,
    /// A part of a buffer of one machine, for the others.
    Part,
    /// A part of a value of one machine, for the others.
    Value,
    /// The last part of such a value.
    LastValue,
    /// One frame with data was taken in.
    Taken,
    /// A rank has failed, and why.
    Failed,
    /// The other end has done all its calls, and goes.
    Left,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Introduction,
        Self::Call,
        Self::Partial,
        Self::Sum,
        Self::Part,
        Self::Value,
        Self::LastValue,
        Self::Taken,
        Self::Failed,
        Self::Left,
    ];
}

/// The beginning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// The machine that the data is of.
    pub(super) origin: u16,
    /// Which piece, from 0; of [`Kind::Failed`] the rank, of [`Kind::Taken`] how many.
    pub(super) piece: u32,
    /// The exchange that it belongs to: a call is one or more.
    pub(super) exchange: u64,
}

impl Header {
    pub(super) fn of(kind: Kind, exchange: u64) -> Self {
        Self {
            kind,
            origin: 0,
            piece: 0,
            exchange,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind as u8;
        bytes[2..4].copy_from_slice(&self.origin.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.piece.to_le_bytes());
        bytes[8..].copy_from_slice(&self.exchange.to_le_bytes());
        bytes
    }

    /// `None` for what no rank of this version sends.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == bytes[0])?;
        let [_, _, o0, o1, p0, p1, p2, p3, exchange @ ..] = *bytes;
        Some(Self {
            kind,
            origin: u16::from_le_bytes([o0, o1]),
            piece: u32::from_le_bytes([p0, p1, p2, p3]),
            exchange: u64::from_le_bytes(exchange),
        })
    }
}

/// Bytes that begin where any number may.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl Aligned {
    pub(super) fn new(len: usize) -> Self {
        let mut aligned = Self::default();
        aligned.set_len(len);
        aligned
    }

    /// Makes it so long; what it holds then is of no use.
    pub(super) fn set_len(&mut self, len: usize) {
        self.words.resize(len.div_ceil(size_of::<u64>()), 0);
        self.len = len;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the words have at least `len` bytes, and any bytes are valid as bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and any bytes make a word.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.len) }
    }
}

/// Memory of frames that are done with, for frames to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Aligned>>>);

impl Pool {
    /// More than this is given back to the system.
    const KEPT: usize = 32;

    pub(super) fn take(&self) -> Aligned {
        self.lock().pop().unwrap_or_default()
    }

    pub(super) fn give(&self, frame: Frame) {
        let mut kept = self.lock();
        if kept.len() < Self::KEPT {
            kept.push(frame.payload);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Aligned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame that came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: Header,
    /// Header and data.
    payload: Aligned,
}

impl Frame {
    pub(super) fn new(header: Header, data: &[u8]) -> Self {
        Self::of(header, data, Aligned::default())
    }

    /// With these data, in memory that is done with.
    pub(super) fn of(header: Header, data: &[u8], memory: Aligned) -> Self {
        let mut frame = Self::empty(header, data.len(), memory);
        frame.data_mut().copy_from_slice(data);
        frame
    }

    /// With room for so many bytes of data, in memory that is done with.
    pub(super) fn empty(header: Header, len: usize, mut payload: Aligned) -> Self {
        payload.set_len(HEADER_BYTES + len);
        payload.bytes_mut()[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        Self { header, payload }
    }

    /// `None` for what no rank of this version sends.
    pub(super) fn from_payload(payload: Aligned) -> Option<Self> {
        let header = Header::from_bytes(payload.bytes())?;
        Some(Self { header, payload })
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.payload.bytes()
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.payload.bytes()[HEADER_BYTES..]
    }

    pub(super) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.payload.bytes_mut()[HEADER_BYTES..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_are_read_back(kind in 0..Kind::ALL.len(), origin: u16, piece: u32, exchange: u64) {
            let header = Header { kind: Kind::ALL[kind], origin, piece, exchange };
            prop_assert_eq!(Header::from_bytes(&header.to_bytes()), Some(header));
        }

        #[test]
        fn any_bytes_are_a_header_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(header) = Header::from_bytes(&bytes) {
                prop_assert!(Kind::ALL.contains(&header.kind));
            }
        }
    }

    #[test]
    fn data_begins_where_any_number_may() {
        let frame = Frame::new(Header::of(Kind::Part, 7), &[1, 2, 3]);
        assert_eq!(frame.data().as_ptr().align_offset(8), 0);
        assert_eq!(frame.data(), [1, 2, 3]);
        let again = Frame::from_payload(frame.payload).unwrap();
        assert_eq!((again.header.kind, again.data().len()), (Kind::Part, 3));
        assert!(Frame::from_payload(Aligned::new(3)).is_none());
    }
}
