//! Typed windows into a buffer. What they point at stays hidden: memory of a device will be
//! another kind behind the same types.

use std::ops::Range;

use crate::{DType, Element, MemoryError, Result};

/// Most dimensions of a view; no weight of a transformer has more.
pub const MAX_DIMENSIONS: usize = 4;

/// A shape by value, so that a view can be copied.
#[derive(Clone, Copy, Debug)]
struct Shape {
    sizes: [usize; MAX_DIMENSIONS],
    dimensions: usize,
}

impl Shape {
    /// Checks that `shape` describes `len` elements.
    fn new(shape: &[usize], len: usize) -> Result<Self> {
        let mut sizes = [0; MAX_DIMENSIONS];
        let Some(target) = sizes.get_mut(..shape.len()) else {
            return Err(MemoryError::Dimensions {
                shape: shape.to_vec(),
            });
        };
        target.copy_from_slice(shape);
        let elements = shape
            .iter()
            .try_fold(1_usize, |product, &size| product.checked_mul(size));
        if elements != Some(len) {
            return Err(MemoryError::Shape {
                shape: shape.to_vec(),
                len,
            });
        }
        Ok(Self {
            sizes,
            dimensions: shape.len(),
        })
    }

    fn as_slice(&self) -> &[usize] {
        &self.sizes[..self.dimensions]
    }

    /// The bytes of some of the rows, out of `bytes`, and their shape.
    fn rows(self, rows: Range<usize>, bytes: usize) -> Result<(Range<usize>, Self)> {
        let count = self.as_slice().first().copied().unwrap_or(0);
        if rows.start > rows.end || rows.end > count {
            return Err(MemoryError::Range {
                range: rows,
                len: count,
            });
        }
        let row = bytes.checked_div(count).unwrap_or(0);
        let mut shape = self;
        if let Some(first) = shape.sizes.first_mut() {
            *first = rows.len();
        }
        Ok((rows.start * row..rows.end * row, shape))
    }
}

fn expect_dtype<T: Element>(found: DType) -> Result<()> {
    if T::DTYPE == found {
        Ok(())
    } else {
        Err(MemoryError::DType {
            expected: T::DTYPE,
            found,
        })
    }
}

/// A tensor to read: row-major, contiguous.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
    dtype: DType,
    shape: Shape,
}

impl<'a> View<'a> {
    /// A view of elements that lie elsewhere than in a buffer.
    pub fn from_slice<T: Element>(elements: &'a [T], shape: &[usize]) -> Result<Self> {
        Self::from_bytes(bytemuck::cast_slice(elements), T::DTYPE, shape)
    }

    /// `bytes` are aligned to the element and a whole number of elements.
    pub(crate) fn from_bytes(bytes: &'a [u8], dtype: DType, shape: &[usize]) -> Result<Self> {
        let shape = Shape::new(shape, bytes.len() / dtype.size_in_bytes())?;
        Ok(Self {
            bytes,
            dtype,
            shape,
        })
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size of each dimension; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        self.shape.as_slice()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_in_bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T]> {
        expect_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice(self.bytes))
    }

    /// The elements as bytes of this machine.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Those of the first dimension that `rows` counts; a scalar has none.
    pub fn rows(&self, rows: Range<usize>) -> Result<View<'a>> {
        let (bytes, shape) = self.shape.rows(rows, self.bytes.len())?;
        Ok(Self {
            bytes: &self.bytes[bytes],
            dtype: self.dtype,
            shape,
        })
    }
}

/// A tensor to read and write: row-major, contiguous, and nobody else's meanwhile.
#[derive(Debug)]
pub struct ViewMut<'a> {
    bytes: &'a mut [u8],
    dtype: DType,
    shape: Shape,
}

impl<'a> ViewMut<'a> {
    /// A writable view of elements that lie elsewhere than in a buffer.
    pub fn from_slice<T: Element>(elements: &'a mut [T], shape: &[usize]) -> Result<Self> {
        Self::from_bytes(bytemuck::cast_slice_mut(elements), T::DTYPE, shape)
    }

    /// `bytes` are aligned to the element and a whole number of elements.
    pub(crate) fn from_bytes(bytes: &'a mut [u8], dtype: DType, shape: &[usize]) -> Result<Self> {
        let shape = Shape::new(shape, bytes.len() / dtype.size_in_bytes())?;
        Ok(Self {
            bytes,
            dtype,
            shape,
        })
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size of each dimension; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        self.shape.as_slice()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_in_bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements, to read.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.as_view().as_slice()
    }

    /// The elements, to write.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        expect_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice_mut(self.bytes))
    }

    /// The elements, to write for as long as the buffer is lent.
    pub fn into_mut_slice<T: Element>(self) -> Result<&'a mut [T]> {
        expect_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice_mut(self.bytes))
    }

    /// The same tensor, to read.
    pub fn as_view(&self) -> View<'_> {
        View {
            bytes: self.bytes,
            dtype: self.dtype,
            shape: self.shape,
        }
    }

    /// The same tensor for a shorter while, so that a callee can take it by value.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut {
            bytes: self.bytes,
            dtype: self.dtype,
            shape: self.shape,
        }
    }

    /// Those of the first dimension that `rows` counts, to write; a scalar has none.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> Result<ViewMut<'_>> {
        let (bytes, shape) = self.shape.rows(rows, self.bytes.len())?;
        Ok(ViewMut {
            bytes: &mut self.bytes[bytes],
            dtype: self.dtype,
            shape,
        })
    }

    /// Sets every element to zero.
    pub fn fill_zero(&mut self) {
        self.bytes.fill(0);
    }
}
