//! Where the tensors of a flat buffer lie: a pure function of names, shapes and type.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

use crate::{ALIGNMENT, DType, MAX_DIMENSIONS, MemoryError, Result};

/// Where one named tensor lies in a flat buffer, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    name: String,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
}

impl Slot {
    /// Name of the tensor, unique in its layout.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape, row-major; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its first element in the buffer.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its number of elements, without padding.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its elements in the buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// All tensors of a flat buffer in order, each aligned to [`ALIGNMENT`] bytes. The padding between
/// them stays zero, so that sums and norms may run over the whole buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    dtype: DType,
    slots: Vec<Slot>,
    by_name: HashMap<String, usize>,
    len: usize,
}

impl Layout {
    /// Places tensors of these names and shapes one after the other.
    pub fn new(
        dtype: DType,
        tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
    ) -> Result<Self> {
        let step = ALIGNMENT / dtype.size_in_bytes();
        let mut layout = Self {
            dtype,
            slots: Vec::new(),
            by_name: HashMap::new(),
            len: 0,
        };
        for (name, shape) in tensors {
            if shape.len() > MAX_DIMENSIONS {
                return Err(MemoryError::Dimensions { shape });
            }
            let offset = layout.len;
            let sizes = shape
                .iter()
                .try_fold(1_usize, |product, &size| product.checked_mul(size))
                .and_then(|len| {
                    let end = offset.checked_add(len)?.checked_next_multiple_of(step)?;
                    // The byte size has to fit in what one allocation may be, not only in a usize.
                    isize::try_from(end.checked_mul(dtype.size_in_bytes())?).ok()?;
                    Some((len, end))
                });
            let Some((len, end)) = sizes else {
                return Err(MemoryError::TooLarge { what: name });
            };
            match layout.by_name.entry(name.clone()) {
                Entry::Occupied(_) => return Err(MemoryError::Duplicate { name }),
                Entry::Vacant(place) => place.insert(layout.slots.len()),
            };
            layout.slots.push(Slot {
                name,
                shape,
                offset,
                len,
            });
            layout.len = end;
        }
        Ok(layout)
    }

    /// The same as layouts of neighbours, of at most `most` elements each or of a tensor that has more; with
    /// each the element of this layout that it begins at.
    pub fn parts(&self, most: usize) -> Result<Vec<(usize, Self)>> {
        let end = |slot: &Slot| slot.offset + slot.len;
        let mut parts = Vec::new();
        let mut left = &self.slots[..];
        while let Some(first) = left.first() {
            let fit = left.partition_point(|slot| end(slot) - first.offset <= most);
            let (part, rest) = left.split_at(fit.max(1));
            let tensors = part
                .iter()
                .map(|slot| (slot.name.clone(), slot.shape.clone()));
            parts.push((first.offset, Self::new(self.dtype, tensors)?));
            left = rest;
        }
        Ok(parts)
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The tensors, in the order they were given.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The tensor at `index`, which must be less than the number of slots.
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    /// Index of the tensor called `name`.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Elements of the buffer, padding included: a multiple of [`ALIGNMENT`] bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no tensor has an element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
