//! Flat memory of one element type.

use std::{ops::Range, ptr::NonNull, sync::Arc};

use crate::{
    ALIGNMENT, DType, DeviceMemory, DeviceRange, Element, MemoryError, Result, SharedMapping, Slot,
    View, ViewMut,
    heap::HeapMemory,
    view::{Bytes, BytesMut, NOT_ON_HOST},
};

const ON_HOST: &str = "memory that is not a device's is the host's";

/// Who keeps a buffer's memory alive.
#[derive(Debug)]
enum Memory {
    Heap(HeapMemory),
    Shared {
        mapping: Arc<SharedMapping>,
        offset: usize,
    },
    Device(Box<dyn DeviceMemory>),
}

/// Flat memory of `len` elements, zeroed when made, aligned to [`ALIGNMENT`]: on the heap, a piece of
/// memory that the ranks of a machine share, or memory of a device.
///
/// # Shared memory
///
/// Peers read and write a rank's buffer only while that rank is inside a collective that was lent
/// the buffer as `&mut`. So no borrow of the contents is alive when another process changes them.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    dtype: DType,
    len: usize,
}

impl Buffer {
    /// `len` zeros on the heap. Pages that are never written cost nothing.
    pub fn zeroed(dtype: DType, len: usize) -> Result<Self> {
        let bytes = byte_size(dtype, len)?;
        Ok(Self {
            memory: Memory::Heap(HeapMemory::zeroed(bytes)?),
            dtype,
            len,
        })
    }

    /// `len` elements that begin `byte_offset` bytes into a mapping, as they are there.
    ///
    /// # Safety
    ///
    /// While the buffer lives, no other buffer or pointer of this process may reach the same bytes,
    /// and other processes may touch them only when the buffer is lent as `&mut` to the code that
    /// lets them (a collective), and be done when that returns.
    pub unsafe fn in_shared(
        mapping: &Arc<SharedMapping>,
        byte_offset: usize,
        dtype: DType,
        len: usize,
    ) -> Result<Self> {
        let bytes = byte_size(dtype, len)?;
        if !byte_offset.is_multiple_of(ALIGNMENT) {
            return Err(MemoryError::Misaligned {
                offset: byte_offset,
            });
        }
        let end = byte_offset.saturating_add(bytes);
        if end > mapping.len() {
            return Err(MemoryError::OutsideMapping {
                range: byte_offset..end,
                len: mapping.len(),
            });
        }
        let memory = Memory::Shared {
            mapping: Arc::clone(mapping),
            offset: byte_offset,
        };
        Ok(Self { memory, dtype, len })
    }

    /// `len` zeros in `memory` of a device, which has room for them.
    pub fn on_device(memory: Box<dyn DeviceMemory>, dtype: DType, len: usize) -> Result<Self> {
        let bytes = byte_size(dtype, len)?;
        memory.fill_zero(0..bytes)?;
        Ok(Self {
            memory: Memory::Device(memory),
            dtype,
            len,
        })
    }

    /// A copy on the heap.
    pub fn to_host(&self) -> Result<Self> {
        let mut copy = Self::zeroed(self.dtype, self.len)?;
        self.copy_to_host(&mut copy)?;
        Ok(copy)
    }

    /// Writes the elements to `target`, a buffer of the host of the same type and length.
    pub fn copy_to_host(&self, target: &mut Self) -> Result<()> {
        target.expect_like(self)?;
        match self.bytes_of_all() {
            Bytes::Host(bytes) => target.as_mut_bytes()?.copy_from_slice(bytes),
            Bytes::Device(range) => range.read(target.as_mut_bytes()?)?,
        }
        Ok(())
    }

    /// Copies the bytes that begin `offset` bytes from the start to `out`, all of it, wherever they are.
    pub fn read_bytes(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let (range, len) = (offset..offset.saturating_add(out.len()), self.bytes());
        if range.end > len {
            return Err(MemoryError::Range { range, len });
        }
        match self.bytes_of_all() {
            Bytes::Host(bytes) => out.copy_from_slice(&bytes[range]),
            Bytes::Device(all) => all.part(range).read(out)?,
        }
        Ok(())
    }

    /// Writes `bytes`, the first of them `offset` bytes from the start, wherever the buffer is.
    pub fn write_bytes(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let (range, len) = (offset..offset.saturating_add(bytes.len()), self.bytes());
        if range.end > len {
            return Err(MemoryError::Range { range, len });
        }
        if let Memory::Device(memory) = &self.memory {
            return memory.write(offset, bytes);
        }
        self.as_mut_bytes()?[range].copy_from_slice(bytes);
        Ok(())
    }

    /// Takes over the elements of `source`, a buffer of the host of the same type and length.
    pub fn copy_from_host(&mut self, source: &Self) -> Result<()> {
        self.expect_like(source)?;
        self.write_bytes(0, source.as_bytes()?)
    }

    /// Checks that another buffer has the same type and length.
    fn expect_like(&self, other: &Self) -> Result<()> {
        if other.dtype != self.dtype {
            let (expected, found) = (self.dtype, other.dtype);
            return Err(MemoryError::DType { expected, found });
        }
        if other.len != self.len {
            let (range, len) = (0..other.len, self.len);
            return Err(MemoryError::Range { range, len });
        }
        Ok(())
    }

    /// Whether the memory is a device's.
    pub fn is_on_device(&self) -> bool {
        matches!(self.memory, Memory::Device(_))
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the buffer begins in the memory that ranks share, in bytes from the start of the
    /// shared memory; `None` on the heap.
    pub fn shared_offset(&self) -> Option<usize> {
        match &self.memory {
            Memory::Heap(_) | Memory::Device(_) => None,
            Memory::Shared { mapping, offset } => Some(mapping.file_offset() + offset),
        }
    }

    /// The elements.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.view(0..self.len, &[self.len])?.as_slice()
    }

    /// The elements, to write.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let len = self.len;
        self.view_mut(0..len, &[len])?.into_mut_slice()
    }

    /// The elements, which are the host's, as bytes of this machine.
    pub fn as_bytes(&self) -> Result<&[u8]> {
        let start = self.pointer()?;
        // SAFETY: the memory is valid for that many bytes, initialised (zeroed when made, and any
        // bits are valid), and lives as long as the borrow; writes need `&mut self`, also those
        // of other processes (contract of `in_shared`).
        Ok(unsafe { std::slice::from_raw_parts(start.as_ptr(), self.bytes()) })
    }

    /// The elements, which are the host's, as bytes of this machine, to write. Any bits are valid
    /// elements.
    pub fn as_mut_bytes(&mut self) -> Result<&mut [u8]> {
        let (start, bytes) = (self.pointer()?, self.bytes());
        // SAFETY: as in `as_bytes`, and `&mut self` makes this the only borrow: the memory is
        // reached through this buffer alone (ownership on the heap, contract of `in_shared`).
        Ok(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), bytes) })
    }

    fn bytes_of_all(&self) -> Bytes<'_> {
        match &self.memory {
            Memory::Device(memory) => Bytes::Device(DeviceRange::new(&**memory, 0, self.bytes())),
            _ => Bytes::Host(self.as_bytes().expect(ON_HOST)),
        }
    }

    fn bytes_of_all_mut(&mut self) -> BytesMut<'_> {
        if self.is_on_device() {
            let Bytes::Device(range) = self.bytes_of_all() else {
                unreachable!("a device's memory is a range of it");
            };
            return BytesMut::Device(range);
        }
        BytesMut::Host(self.as_mut_bytes().expect(ON_HOST))
    }

    /// Sets every element to zero, padding included.
    pub fn fill_zero(&mut self) -> Result<()> {
        let len = self.len;
        self.view_mut(0..len, &[len])?.fill_zero()
    }

    /// The elements of `range` as a tensor of `shape`.
    pub fn view(&self, range: Range<usize>, shape: &[usize]) -> Result<View<'_>> {
        let bytes = self.byte_range(range)?;
        View::from_bytes(self.bytes_of_all().part(bytes), self.dtype, shape)
    }

    /// The elements of `range` as a tensor of `shape`, to write.
    pub fn view_mut(&mut self, range: Range<usize>, shape: &[usize]) -> Result<ViewMut<'_>> {
        let bytes = self.byte_range(range)?;
        let dtype = self.dtype;
        ViewMut::from_bytes(self.bytes_of_all_mut().part(bytes), dtype, shape)
    }

    /// The tensor that lies at `slot`.
    pub fn slot_view(&self, slot: &Slot) -> Result<View<'_>> {
        self.view(slot.range(), slot.shape())
    }

    /// The tensor that lies at `slot`, to write.
    pub fn slot_view_mut(&mut self, slot: &Slot) -> Result<ViewMut<'_>> {
        self.view_mut(slot.range(), slot.shape())
    }

    /// Several tensors to write at once, in the order of `slots`, which must not overlap.
    pub fn views_mut<'s>(
        &mut self,
        slots: impl IntoIterator<Item = &'s Slot>,
    ) -> Result<Vec<ViewMut<'_>>> {
        let dtype = self.dtype;
        let mut wanted = Vec::new();
        for (position, slot) in slots.into_iter().enumerate() {
            wanted.push((position, slot, self.byte_range(slot.range())?));
        }
        wanted.sort_by_key(|(_, _, bytes)| (bytes.start, bytes.end));
        for pair in wanted.windows(2) {
            let [(_, first, first_bytes), (_, second, second_bytes)] = pair else {
                continue;
            };
            if second_bytes.start < first_bytes.end {
                let (first, second) = (first.name().to_owned(), second.name().to_owned());
                return Err(MemoryError::Overlap { first, second });
            }
        }
        let mut views = Vec::with_capacity(wanted.len());
        let (mut rest, mut rest_start) = (self.bytes_of_all_mut(), 0);
        for (position, slot, bytes) in wanted {
            let (taken, after) = rest.split(bytes.end - rest_start);
            let (_, taken) = taken.split(bytes.start - rest_start);
            (rest, rest_start) = (after, bytes.end);
            views.push((position, ViewMut::from_bytes(taken, dtype, slot.shape())?));
        }
        views.sort_by_key(|(position, _)| *position);
        Ok(views.into_iter().map(|(_, view)| view).collect())
    }

    /// First byte of the memory, which is the host's. For those who let other processes read it
    /// (collectives); it is aligned to [`ALIGNMENT`] and valid for all elements while the buffer
    /// lives.
    pub fn pointer(&self) -> Result<NonNull<u8>> {
        match &self.memory {
            Memory::Heap(memory) => Ok(memory.pointer()),
            Memory::Shared { mapping, offset } => {
                // SAFETY: `in_shared` checked that the buffer ends inside the mapping.
                Ok(unsafe { mapping.pointer().add(*offset) })
            }
            Memory::Device(_) => Err(NOT_ON_HOST),
        }
    }

    fn bytes(&self) -> usize {
        self.len * self.dtype.size_in_bytes()
    }

    fn byte_range(&self, range: Range<usize>) -> Result<Range<usize>> {
        if range.start > range.end || range.end > self.len {
            return Err(MemoryError::Range {
                range,
                len: self.len,
            });
        }
        let size = self.dtype.size_in_bytes();
        Ok(range.start * size..range.end * size)
    }
}

fn byte_size(dtype: DType, len: usize) -> Result<usize> {
    len.checked_mul(dtype.size_in_bytes())
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(|| MemoryError::TooLarge {
            what: format!("buffer of {len} {dtype}"),
        })
}
