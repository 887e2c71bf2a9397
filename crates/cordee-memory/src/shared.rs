//! Memory that the ranks of one machine have in common: a memory file, inherited by file
//! descriptor, of which each rank maps the pieces it needs.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    ptr::{self, NonNull},
    sync::Arc,
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

use crate::{MemoryError, Result, pages};

/// A file in memory that can grow and never shrink. It has no name in the file system, so it is
/// gone when the last process that holds it is.
#[derive(Debug)]
pub struct SharedMemory {
    file: OwnedFd,
}

impl SharedMemory {
    /// An empty one. `name` is what `/proc/<pid>/fd` shows. The descriptor is closed on exec;
    /// whoever starts ranks clears that flag in the child.
    pub fn create(name: &str) -> Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags)
            .map_err(|errno| system("memfd_create", 0, errno))?;
        // Without this seal any holder could shrink the file and kill its peers with SIGBUS.
        let seals = SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)
            .map_err(|errno| system("fcntl(F_ADD_SEALS)", 0, errno))?;
        Ok(Self { file })
    }

    /// The one behind a descriptor; refused unless it is a file in memory that cannot shrink.
    pub fn from_fd(file: OwnedFd) -> Result<Self> {
        let refused = |reason| Err(MemoryError::NotSharedMemory { reason });
        match rustix::fs::fcntl_get_seals(&file) {
            Ok(seals) if seals.contains(SealFlags::SHRINK) => Ok(Self { file }),
            Ok(_) => match rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK) {
                Ok(()) => Ok(Self { file }),
                Err(_) => refused("it could shrink and forbids the seal against that"),
            },
            Err(Errno::INVAL) => refused("it is not a file in memory"),
            Err(errno) => Err(system("fcntl(F_GET_SEALS)", 0, errno)),
        }
    }

    /// The one that this process inherited under descriptor `number`. Opened anew, so that
    /// nobody's descriptor is taken away; `number` itself stays open.
    pub fn inherited(number: RawFd) -> Result<Self> {
        // Opening a socket or another process's file through this path fails or is refused below.
        let file = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{number}"))
            .map_err(|source| MemoryError::System {
                call: "open",
                bytes: 0,
                source,
            })?;
        Self::from_fd(file.into())
    }

    /// A second descriptor of the same memory, closed on exec.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self
            .file
            .try_clone()
            .map_err(|source| MemoryError::System {
                call: "dup",
                bytes: 0,
                source,
            })?;
        Ok(Self { file })
    }

    /// Bytes it has now.
    pub fn len(&self) -> Result<usize> {
        let status = rustix::fs::fstat(&self.file).map_err(|errno| system("fstat", 0, errno))?;
        Ok(status.st_size as usize)
    }

    /// Whether it has no bytes yet.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes it at least `bytes` long; what is added is zero. All ranks may call this at once, in
    /// any order and with different sizes: the largest wins.
    pub fn grow(&self, bytes: usize) -> Result<()> {
        if self.len()? >= bytes {
            return Ok(());
        }
        match rustix::fs::ftruncate(&self.file, bytes as u64) {
            Ok(()) => Ok(()),
            // A peer grew it further meanwhile and the seal kept us from shrinking it.
            Err(Errno::PERM) if self.len()? >= bytes => Ok(()),
            Err(errno) => Err(system("ftruncate", bytes, errno)),
        }
    }

    /// Maps `len` bytes from `offset`, a multiple of the page size, growing the file if need be.
    pub fn map(&self, offset: usize, len: usize) -> Result<Arc<SharedMapping>> {
        let end = offset
            .checked_add(len)
            .ok_or_else(|| MemoryError::TooLarge {
                what: "shared memory".to_owned(),
            })?;
        self.grow(end)?;
        // mmap refuses nothing; an empty buffer still gets a place.
        let mapped = len.max(1);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory. The
        // file cannot shrink, so every byte below `end` stays backed.
        let pointer = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &self.file,
                offset as u64,
            )
        }
        .map_err(|errno| system("mmap", len, errno))?;
        let pointer =
            NonNull::new(pointer.cast()).expect("mmap never succeeds with a null address");
        // SAFETY: all of the new mapping.
        unsafe { pages::prefer_large(pointer, len) };
        Ok(Arc::new(SharedMapping {
            pointer,
            mapped,
            len,
            file_offset: offset,
        }))
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<SharedMemory> for OwnedFd {
    fn from(memory: SharedMemory) -> Self {
        memory.file
    }
}

/// A piece of a [`SharedMemory`] in the address space of this process, unmapped on drop. Other
/// processes may write it at any time, so it lends raw pointers only.
#[derive(Debug)]
pub struct SharedMapping {
    pointer: NonNull<u8>,
    mapped: usize,
    len: usize,
    file_offset: usize,
}

// SAFETY: the mapping is owned by this value; the pointer it hands out is raw, and those who use
// it answer for the accesses.
unsafe impl Send for SharedMapping {}
// SAFETY: as above.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// First byte; aligned to a page, valid for [`Self::len`] bytes while the mapping lives.
    pub fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts private zeros in the place of `range`, whose ends are multiples of the page size. What
    /// other processes do to the shared bytes is no longer seen here, nor the other way round.
    ///
    /// # Safety
    ///
    /// Nobody may hold a reference into the range.
    pub unsafe fn detach(&self, range: Range<usize>) -> Result<()> {
        if range.end > self.len {
            return Err(MemoryError::OutsideMapping {
                range,
                len: self.len,
            });
        }
        if range.is_empty() {
            return Ok(());
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the pages replaced are inside this mapping, and by the caller's word nobody
        // refers to what they hold.
        let replaced = unsafe {
            let first = self.pointer.add(range.start).as_ptr().cast();
            rustix::mm::mmap_anonymous(
                first,
                range.len(),
                access,
                MapFlags::PRIVATE | MapFlags::FIXED,
            )
        };
        replaced
            .map(|_| ())
            .map_err(|errno| system("mmap", range.len(), errno))
    }

    /// Where it begins in the shared memory, in bytes: the same place for every process.
    pub fn file_offset(&self) -> usize {
        self.file_offset
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `SharedMemory::map` with this length; the buffers inside hold an `Arc`
        // of this value, so none is left.
        let unmapped = unsafe { rustix::mm::munmap(self.pointer.as_ptr().cast(), self.mapped) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
    }
}

fn system(call: &'static str, bytes: usize, errno: Errno) -> MemoryError {
    MemoryError::System {
        call,
        bytes,
        source: io::Error::from(errno),
    }
}
