//! Typed windows into a buffer, on the host or on a device.

use std::ops::Range;

use crate::{DType, DeviceRange, Element, MemoryError, Result};

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

/// A slice was asked of a device's memory.
pub(crate) const NOT_ON_HOST: MemoryError = MemoryError::Place {
    found: "on a device",
    expected: "the host's",
};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes<'a> {
    Host(&'a [u8]),
    Device(DeviceRange<'a>),
}

#[derive(Debug)]
pub(crate) enum BytesMut<'a> {
    Host(&'a mut [u8]),
    Device(DeviceRange<'a>),
}

impl<'a> Bytes<'a> {
    fn len(self) -> usize {
        match self {
            Self::Host(bytes) => bytes.len(),
            Self::Device(range) => range.len(),
        }
    }

    fn host(self) -> Result<&'a [u8]> {
        match self {
            Self::Host(bytes) => Ok(bytes),
            Self::Device(_) => Err(NOT_ON_HOST),
        }
    }

    pub(crate) fn part(self, bytes: Range<usize>) -> Self {
        match self {
            Self::Host(all) => Self::Host(&all[bytes]),
            Self::Device(all) => Self::Device(all.part(bytes)),
        }
    }
}

impl<'a> BytesMut<'a> {
    fn as_bytes(&self) -> Bytes<'_> {
        match self {
            Self::Host(bytes) => Bytes::Host(bytes),
            Self::Device(range) => Bytes::Device(*range),
        }
    }

    fn host(self) -> Result<&'a mut [u8]> {
        match self {
            Self::Host(bytes) => Ok(bytes),
            Self::Device(_) => Err(NOT_ON_HOST),
        }
    }

    fn reborrow(&mut self) -> BytesMut<'_> {
        match self {
            Self::Host(bytes) => BytesMut::Host(bytes),
            Self::Device(range) => BytesMut::Device(*range),
        }
    }

    pub(crate) fn part(self, bytes: Range<usize>) -> Self {
        match self {
            Self::Host(all) => Self::Host(&mut all[bytes]),
            Self::Device(all) => Self::Device(all.part(bytes)),
        }
    }

    /// The first `len` bytes, and the rest.
    pub(crate) fn split(self, len: usize) -> (Self, Self) {
        match self {
            Self::Host(all) => {
                let (first, rest) = all.split_at_mut(len);
                (Self::Host(first), Self::Host(rest))
            }
            Self::Device(all) => {
                let parts = (all.part(0..len), all.part(len..all.len()));
                (Self::Device(parts.0), Self::Device(parts.1))
            }
        }
    }
}

/// A tensor to read: row-major, contiguous.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: Bytes<'a>,
    dtype: DType,
    shape: Shape,
}

impl<'a> View<'a> {
    /// A view of elements that lie elsewhere than in a buffer.
    pub fn from_slice<T: Element>(elements: &'a [T], shape: &[usize]) -> Result<Self> {
        let bytes = Bytes::Host(bytemuck::cast_slice(elements));
        Self::from_bytes(bytes, T::DTYPE, shape)
    }

    /// `bytes` are aligned to the element and a whole number of elements.
    pub(crate) fn from_bytes(bytes: Bytes<'a>, dtype: DType, shape: &[usize]) -> Result<Self> {
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
        self.bytes.len() == 0
    }

    /// The elements, which are the host's.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T]> {
        expect_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice(self.bytes.host()?))
    }

    /// The elements, which are the host's, as bytes of this machine.
    pub fn as_bytes(&self) -> Result<&'a [u8]> {
        self.bytes.host()
    }

    /// Where the elements are on a device; `None` on the host.
    pub fn device(&self) -> Option<DeviceRange<'a>> {
        match self.bytes {
            Bytes::Host(_) => None,
            Bytes::Device(range) => Some(range),
        }
    }

    /// A copy of the elements, wherever they are. Waits for the device, if they are on one.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        expect_dtype::<T>(self.dtype)?;
        match self.bytes {
            Bytes::Host(bytes) => Ok(bytemuck::cast_slice(bytes).to_vec()),
            Bytes::Device(range) => {
                let mut elements = vec![T::zeroed(); self.len()];
                range.read(bytemuck::cast_slice_mut(&mut elements))?;
                Ok(elements)
            }
        }
    }

    /// The same as bytes of this machine.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        match self.bytes {
            Bytes::Host(bytes) => Ok(bytes.to_vec()),
            Bytes::Device(range) => {
                let mut bytes = vec![0; range.len()];
                range.read(&mut bytes)?;
                Ok(bytes)
            }
        }
    }

    /// Those of the first dimension that `rows` counts; a scalar has none.
    pub fn rows(&self, rows: Range<usize>) -> Result<View<'a>> {
        let (bytes, shape) = self.shape.rows(rows, self.bytes.len())?;
        Ok(Self {
            bytes: self.bytes.part(bytes),
            dtype: self.dtype,
            shape,
        })
    }
}

/// A tensor to read and write: row-major, contiguous, and nobody else's meanwhile.
#[derive(Debug)]
pub struct ViewMut<'a> {
    bytes: BytesMut<'a>,
    dtype: DType,
    shape: Shape,
}

impl<'a> ViewMut<'a> {
    /// A writable view of elements that lie elsewhere than in a buffer.
    pub fn from_slice<T: Element>(elements: &'a mut [T], shape: &[usize]) -> Result<Self> {
        let bytes = BytesMut::Host(bytemuck::cast_slice_mut(elements));
        Self::from_bytes(bytes, T::DTYPE, shape)
    }

    /// `bytes` are aligned to the element and a whole number of elements.
    pub(crate) fn from_bytes(bytes: BytesMut<'a>, dtype: DType, shape: &[usize]) -> Result<Self> {
        let shape = Shape::new(shape, bytes.as_bytes().len() / dtype.size_in_bytes())?;
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
        self.as_view().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.as_view().is_empty()
    }

    /// The elements, which are the host's, to read.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.as_view().as_slice()
    }

    /// The elements, which are the host's, to write.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        self.reborrow().into_mut_slice()
    }

    /// The elements, which are the host's, to write for as long as the buffer is lent.
    pub fn into_mut_slice<T: Element>(self) -> Result<&'a mut [T]> {
        expect_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice_mut(self.bytes.host()?))
    }

    /// Where the elements are on a device; `None` on the host.
    pub fn device(&self) -> Option<DeviceRange<'_>> {
        self.as_view().device()
    }

    /// The same tensor, to read.
    pub fn as_view(&self) -> View<'_> {
        View {
            bytes: self.bytes.as_bytes(),
            dtype: self.dtype,
            shape: self.shape,
        }
    }

    /// The same tensor for a shorter while, so that a callee can take it by value.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut {
            bytes: self.bytes.reborrow(),
            dtype: self.dtype,
            shape: self.shape,
        }
    }

    /// Those of the first dimension that `rows` counts, to write; a scalar has none.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> Result<ViewMut<'_>> {
        let (bytes, shape) = self.shape.rows(rows, self.bytes.as_bytes().len())?;
        Ok(ViewMut {
            bytes: self.bytes.reborrow().part(bytes),
            dtype: self.dtype,
            shape,
        })
    }

    /// Sets every element to zero.
    pub fn fill_zero(&mut self) -> Result<()> {
        match &mut self.bytes {
            BytesMut::Host(bytes) => {
                bytes.fill(0);
                Ok(())
            }
            BytesMut::Device(range) => range.fill_zero(),
        }
    }
}
