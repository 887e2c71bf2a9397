//! What memory of a device must offer to lie behind a [`Buffer`](crate::Buffer). Whoever knows the
//! device implements it; nothing here does.

use std::{any::Any, ffi::c_void, fmt, ops::Range, ptr::NonNull};

use crate::Result;

/// Memory of a device, owned. All work on it goes through one queue of the device, in order: a write
/// or a clearing comes after what was asked for before and before what is asked for later, and a
/// read waits until what it reads is there.
pub trait DeviceMemory: fmt::Debug + Send + Sync {
    /// Address of the first byte on the device, aligned to [`ALIGNMENT`](crate::ALIGNMENT).
    fn address(&self) -> u64;

    /// Copies `bytes` to the device, to `offset` bytes from the start. They may be changed or freed
    /// once this returns.
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Copies from the device, from `offset` bytes from the start.
    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Sets some of the bytes to zero.
    fn fill_zero(&self, bytes: Range<usize>) -> Result<()>;

    /// The memory as what it is, so that the device's own code recognises it.
    fn as_any(&self) -> &dyn Any;
}

/// A queue of work beside the one on which a device computes, for what need not wait in that: what
/// ranks send to each other.
pub trait DeviceQueue: fmt::Debug + Send {
    /// The queue as libraries of the device know it, of CUDA a `CUstream`. It lives as long as `self`.
    fn pointer(&self) -> NonNull<c_void>;

    /// What is begun here from now on comes after what the device was given to compute so far.
    fn follow(&self) -> Result<()>;

    /// What the device is given to compute from now on comes after what was begun here so far.
    fn lead(&self) -> Result<()>;

    /// Whether all that was begun here is done. Does not wait.
    fn is_done(&self) -> Result<bool>;
}

/// Some bytes of a device's memory, lent.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRange<'a> {
    memory: &'a dyn DeviceMemory,
    offset: usize,
    len: usize,
}

impl<'a> DeviceRange<'a> {
    /// `len` bytes that begin `offset` bytes from the start.
    pub(crate) fn new(memory: &'a dyn DeviceMemory, offset: usize, len: usize) -> Self {
        Self {
            memory,
            offset,
            len,
        }
    }

    /// The memory that they are of.
    pub fn memory(&self) -> &'a dyn DeviceMemory {
        self.memory
    }

    /// Address of the first on the device.
    pub fn address(&self) -> u64 {
        self.memory.address() + self.offset as u64
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Some of them.
    pub(crate) fn part(self, bytes: Range<usize>) -> Self {
        Self {
            offset: self.offset + bytes.start,
            len: bytes.len(),
            ..self
        }
    }

    pub(crate) fn fill_zero(self) -> Result<()> {
        self.memory.fill_zero(self.offset..self.offset + self.len)
    }

    pub(crate) fn read(self, bytes: &mut [u8]) -> Result<()> {
        self.memory.read(self.offset, bytes)
    }
}
