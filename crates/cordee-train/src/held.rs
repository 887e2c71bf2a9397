//! Which elements of the layout of all parameters a flat buffer holds.

use std::{iter, ops::Range};

use cordee_memory::Layout;

/// Ranges of a layout in ascending order, held one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// Its elements in the layout.
    range: Range<usize>,
    /// Its first in the buffer.
    offset: usize,
}

impl Held {
    /// All of a layout of `len` elements.
    pub(crate) fn all(len: usize) -> Self {
        Self::only(iter::once(0..len))
    }

    /// `ranges` alone, which are in ascending order.
    pub(crate) fn only(ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let mut end = 0;
        let pieces = ranges.into_iter().filter(|range| !range.is_empty());
        let pieces = pieces.map(|range| {
            let offset = end;
            end += range.len();
            Piece { range, offset }
        });
        Self {
            pieces: pieces.collect(),
        }
    }

    /// Elements of the buffer.
    pub(crate) fn len(&self) -> usize {
        let last = self.pieces.last();
        last.map_or(0, |piece| piece.offset + piece.range.len())
    }

    /// Where the elements `range` of the layout are in the buffer, if it holds them one after the other.
    pub(crate) fn find(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let piece = self
            .pieces
            .iter()
            .find(|piece| piece.range.start <= range.start && range.end <= piece.range.end)?;
        let start = piece.offset + range.start - piece.range.start;
        Some(start..start + range.len())
    }

    /// The parts of the layout's elements `range` that the buffer holds, each with where.
    pub(crate) fn parts(
        &self,
        range: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        self.pieces.iter().filter_map(move |piece| {
            let part = intersection(&piece.range, &range);
            let start = piece.offset + part.start.saturating_sub(piece.range.start);
            let place = start..start + part.len();
            (!part.is_empty()).then_some((part, place))
        })
    }

    /// What it holds of the elements `range` of the layout, in words of a layout of these alone; and the first
    /// of them in the buffer, where they follow each other.
    pub(crate) fn within(&self, range: Range<usize>) -> (Self, usize) {
        let first = range.start;
        let (parts, places): (Vec<_>, Vec<_>) = self.parts(range).unzip();
        let parts = parts
            .iter()
            .map(|part| part.start - first..part.end - first);
        (
            Self::only(parts),
            places.first().map_or(0, |place| place.start),
        )
    }

    /// The parts of each tensor of `layout` that the buffer holds: its number, elements counted from its
    /// own first, and where they are.
    pub(crate) fn tensors(
        &self,
        layout: &Layout,
    ) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        layout
            .slots()
            .iter()
            .enumerate()
            .flat_map(move |(index, slot)| {
                let first = slot.offset();
                let own = move |(part, place): (Range<usize>, Range<usize>)| {
                    (index, part.start - first..part.end - first, place)
                };
                self.parts(slot.range()).map(own)
            })
    }
}

/// What two ranges have in common, empty if nothing.
pub(crate) fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

#[cfg(test)]
mod tests {
    use cordee_memory::DType;

    use super::*;

    #[test]
    fn pieces_are_held_one_after_the_other() {
        let held = Held::only([64..128, 200..200, 256..300]);
        assert_eq!(held.len(), 108);
        assert_eq!(held.find(&(64..128)), Some(0..64));
        assert_eq!(held.find(&(260..300)), Some(68..108));
        assert_eq!(held.find(&(100..260)), None);
        let parts: Vec<_> = held.parts(100..270).collect();
        assert_eq!(parts, [(100..128, 36..64), (256..270, 64..78)]);
        assert_eq!(Held::all(7).parts(0..9).collect::<Vec<_>>(), [(0..7, 0..7)]);
        let (within, first) = held.within(100..270);
        assert_eq!((within, first), (Held::only([0..28, 156..170]), 36));
        assert_eq!(held.within(130..256), (Held::only([]), 0));
    }

    #[test]
    fn tensors_are_found_in_pieces() {
        let tensors = [("a", 100), ("b", 10)].map(|(name, len)| (name.to_owned(), vec![len]));
        let layout = Layout::new(DType::F32, tensors).unwrap();
        let held = Held::only(iter::once(64..132));
        let parts: Vec<_> = held.tensors(&layout).collect();
        assert_eq!(parts, [(0, 64..100, 0..36), (1, 0..4, 64..68)]);
    }
}
