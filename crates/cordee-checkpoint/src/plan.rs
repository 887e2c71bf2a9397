//! Who writes what: a pure function of the tensors and the number of writers.
//!
//! Every rank computes the same plan alone, so planning needs no collective, which is what takes
//! minutes at a thousand ranks elsewhere. Small tensors are packed whole and in order, so that a
//! reader finds them in few blocks; large ones go whole to the writer with the most room, and are
//! split only where they do not fit.

use std::collections::{BinaryHeap, HashSet};

use xxhash_rust::xxh3::Xxh3;

use crate::hash::hex_128;
use crate::{CheckpointError, Result, TensorSpec};

/// Bytes up to which a tensor is never split, and by which a writer's share may exceed the mean.
const SMALL: u64 = 64 * 1024;

/// Splits fall on multiples of this many elements, so that a piece is as aligned as its tensor.
const QUANTUM: u64 = 64;

/// A range of one tensor's elements, flat, and who writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the tensor in the plan.
    pub tensor: usize,
    /// First element.
    pub start: u64,
    /// Elements, at least 1.
    pub len: u64,
    /// Who writes it, 0-based.
    pub writer: usize,
}

/// Assigns every element of every tensor to exactly one writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    tensors: Vec<TensorSpec>,
    writers: usize,
    /// Sorted by tensor, then start.
    pieces: Vec<Piece>,
}

impl Plan {
    /// The balanced plan: no writer gets more than the mean of bytes (rounded up) plus 64 KiB.
    ///
    /// Tensors without elements have no piece; writers without pieces write an empty shard.
    pub fn new(tensors: &[TensorSpec], writers: usize) -> Result<Self> {
        validate(tensors, writers)?;
        let total: u64 = tensors.iter().map(TensorSpec::bytes).sum();
        let share = total.div_ceil(writers as u64);
        let mut loads = vec![0; writers];
        let mut pieces = pack_small(tensors, share, &mut loads);
        pieces.extend(fill_with_large(tensors, share, &loads));
        pieces.sort_unstable_by_key(|piece| (piece.tensor, piece.start));
        Ok(Self {
            tensors: tensors.to_vec(),
            writers,
            pieces,
        })
    }

    /// A plan made elsewhere: for writers that hold only a part, where the pieces follow from what
    /// each of them holds. Checked to cover every element exactly once.
    pub fn from_pieces(
        tensors: &[TensorSpec],
        writers: usize,
        mut pieces: Vec<Piece>,
    ) -> Result<Self> {
        validate(tensors, writers)?;
        pieces.sort_unstable_by_key(|piece| (piece.tensor, piece.start));
        check_cover(tensors, writers, &pieces)?;
        Ok(Self {
            tensors: tensors.to_vec(),
            writers,
            pieces,
        })
    }

    /// The tensors, in the order given.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Number of writers.
    pub fn writers(&self) -> usize {
        self.writers
    }

    /// All pieces, by tensor and start.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pieces of one writer, by tensor and start.
    pub fn pieces_of(&self, writer: usize) -> impl Iterator<Item = &Piece> {
        self.pieces
            .iter()
            .filter(move |piece| piece.writer == writer)
    }

    /// Bytes of tensors that one writer writes.
    pub fn bytes_of(&self, writer: usize) -> u64 {
        self.pieces_of(writer)
            .map(|piece| piece.len * self.tensors[piece.tensor].element_size())
            .sum()
    }

    /// Hash of tensors, pieces and writers: equal for all who computed the same plan.
    pub fn hash(&self) -> String {
        let mut hasher = Xxh3::new();
        let number = |number: u64, hasher: &mut Xxh3| hasher.update(&number.to_le_bytes());
        number(self.writers as u64, &mut hasher);
        number(self.tensors.len() as u64, &mut hasher);
        for tensor in &self.tensors {
            number(tensor.name.len() as u64, &mut hasher);
            hasher.update(tensor.name.as_bytes());
            hasher.update(tensor.dtype.to_string().as_bytes());
            number(tensor.shape.len() as u64, &mut hasher);
            for &extent in &tensor.shape {
                number(extent as u64, &mut hasher);
            }
        }
        for piece in &self.pieces {
            for field in [
                piece.tensor as u64,
                piece.start,
                piece.len,
                piece.writer as u64,
            ] {
                number(field, &mut hasher);
            }
        }
        hex_128(&hasher)
    }
}

fn validate(tensors: &[TensorSpec], writers: usize) -> Result<()> {
    if writers == 0 {
        return Err(CheckpointError::InvalidPlan {
            reason: "there are no writers".to_owned(),
        });
    }
    let mut names = HashSet::with_capacity(tensors.len());
    let mut total = 0_i64;
    for tensor in tensors {
        tensor.validate()?;
        if !names.insert(&tensor.name) {
            return Err(CheckpointError::InvalidTensor {
                name: tensor.name.clone(),
                reason: "there are two of this name".to_owned(),
            });
        }
        total = total.checked_add_unsigned(tensor.bytes()).ok_or_else(|| {
            CheckpointError::InvalidPlan {
                reason: "the tensors' bytes overflow".to_owned(),
            }
        })?;
    }
    Ok(())
}

/// Small tensors, whole and in order: each writer takes them until its share is full.
///
/// There is always a writer left, since full shares add up to all bytes.
fn pack_small(tensors: &[TensorSpec], share: u64, loads: &mut [u64]) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(tensors.len());
    let mut writer = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        if tensor.bytes() == 0 || tensor.bytes() > SMALL {
            continue;
        }
        while loads[writer] >= share {
            writer += 1;
        }
        loads[writer] += tensor.bytes();
        pieces.push(Piece {
            tensor: index,
            start: 0,
            len: tensor.elements(),
            writer,
        });
    }
    pieces
}

/// Large tensors, the largest first, each to the writer with the most room. A piece may exceed the
/// room by less than [`SMALL`], which keeps pieces from becoming tiny.
fn fill_with_large(tensors: &[TensorSpec], share: u64, loads: &[u64]) -> Vec<Piece> {
    let mut large: Vec<usize> = (0..tensors.len())
        .filter(|&index| tensors[index].bytes() > SMALL)
        .collect();
    large.sort_by_key(|&index| std::cmp::Reverse(tensors[index].bytes()));
    // The most room first; among equals the lowest writer, so that every rank agrees.
    let mut rooms: BinaryHeap<(i128, std::cmp::Reverse<usize>)> = (loads.iter().enumerate())
        .map(|(writer, &load)| {
            (
                i128::from(share) - i128::from(load),
                std::cmp::Reverse(writer),
            )
        })
        .collect();
    let mut pieces = Vec::with_capacity(large.len() + loads.len());
    for index in large {
        let size = tensors[index].element_size();
        let (mut start, elements) = (0, tensors[index].elements());
        while start < elements {
            let mut most = rooms.peek_mut().expect("there is at least one writer");
            let room = most.0.max(0) as u64;
            let rest = elements - start;
            let len = if rest * size <= room + SMALL {
                rest
            } else {
                room.max(SMALL) / (size * QUANTUM) * QUANTUM
            };
            most.0 -= i128::from(len * size);
            pieces.push(Piece {
                tensor: index,
                start,
                len,
                writer: most.1.0,
            });
            start += len;
        }
    }
    pieces
}

/// Whether sorted `pieces` cover every element of `tensors` exactly once.
fn check_cover(tensors: &[TensorSpec], writers: usize, pieces: &[Piece]) -> Result<()> {
    let invalid = |reason: String| Err(CheckpointError::InvalidPlan { reason });
    let mut pieces = pieces.iter().peekable();
    for (index, tensor) in tensors.iter().enumerate() {
        let mut next = 0;
        while let Some(piece) = pieces.next_if(|piece| piece.tensor == index) {
            let end = piece.start.checked_add(piece.len);
            let inside = end.is_some_and(|end| end <= tensor.elements());
            if piece.start != next || piece.len == 0 || !inside || piece.writer >= writers {
                return invalid(format!(
                    "the piece of tensor `{}` at element {} with {} elements of writer {} \
                     does not follow element {next} of {}",
                    tensor.name,
                    piece.start,
                    piece.len,
                    piece.writer,
                    tensor.elements()
                ));
            }
            next += piece.len;
        }
        if next != tensor.elements() {
            return invalid(format!(
                "elements {next} to {} of tensor `{}` have no writer",
                tensor.elements(),
                tensor.name
            ));
        }
    }
    match pieces.next() {
        None => Ok(()),
        Some(piece) => invalid(format!("there is no tensor {}", piece.tensor)),
    }
}
