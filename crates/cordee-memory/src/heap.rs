//! Aligned zeroed memory from the allocator of the process.

use std::{alloc, ptr::NonNull};

use crate::{ALIGNMENT, MemoryError, Result, pages};

/// Alignment asked of the allocator: the most for which it can hand out zero pages of the system
/// as they are. For more, the standard library allocates and then writes every byte.
const ALLOCATOR_ALIGNMENT: usize = 16;

/// Memory of at least one [`ALIGNMENT`], zeroed, freed on drop.
#[derive(Debug)]
pub(crate) struct HeapMemory {
    allocation: NonNull<u8>,
    layout: alloc::Layout,
    aligned: NonNull<u8>,
}

// SAFETY: the memory is owned by this value alone and reached only through borrows of its owner.
unsafe impl Send for HeapMemory {}
// SAFETY: as above; a shared borrow lends no way to write.
unsafe impl Sync for HeapMemory {}

impl HeapMemory {
    /// Zeroed memory; pages that are never written cost nothing.
    pub(crate) fn zeroed(bytes: usize) -> Result<Self> {
        let refused = || MemoryError::Allocation { bytes };
        // Room to begin at a multiple of ALIGNMENT wherever the allocator puts us.
        let padded = bytes.checked_add(ALIGNMENT).ok_or_else(refused)?;
        let layout =
            alloc::Layout::from_size_align(padded, ALLOCATOR_ALIGNMENT).map_err(|_| refused())?;
        // SAFETY: the layout's size is at least ALIGNMENT, so not zero.
        let allocation =
            NonNull::new(unsafe { alloc::alloc_zeroed(layout) }).ok_or_else(refused)?;
        let skipped = allocation.align_offset(ALIGNMENT);
        // SAFETY: `skipped` is less than ALIGNMENT, which the allocation has beyond `bytes`.
        let aligned = unsafe { allocation.add(skipped) };
        // SAFETY: the bytes are part of the allocation.
        unsafe { pages::prefer_large(aligned, bytes) };
        Ok(Self {
            allocation,
            layout,
            aligned,
        })
    }

    /// First byte, aligned to [`ALIGNMENT`].
    pub(crate) fn pointer(&self) -> NonNull<u8> {
        self.aligned
    }
}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, freed once.
        unsafe { alloc::dealloc(self.allocation.as_ptr(), self.layout) }
    }
}
