//! An allocator for processes that ask for the same large blocks again and again, as every step of
//! a training run does.
//!
//! A large block that is freed is kept, and given to the next who asks for as much. The system's
//! allocator would hand it back to the system, and the system would clear it page by page when it is
//! asked for again: at some hundred megabytes a step, a good part of the step. Small blocks go to
//! the system's allocator.
//!
//! What the process holds, in use and kept, never exceeds the most it has ever had in use by more
//! than [`Recycler::SLACK`]: before more is asked of the system, blocks that were kept longest are returned.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr::{self, NonNull},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::pages;

/// Smallest block that is kept.
const LARGE: usize = 256 << 10;

/// Sizes are rounded up to it, so that blocks of nearly one size serve one another.
const GRAIN: usize = 64 << 10;

/// Blocks kept at a time.
const KEPT: usize = 1024;

/// The allocator; declare it as a program's `#[global_allocator]`.
#[derive(Debug)]
pub struct Recycler {
    state: Mutex<State>,
}

/// A block that nobody uses.
#[derive(Clone, Copy, Debug)]
struct Block {
    start: *mut u8,
    bytes: usize,
}

#[derive(Debug)]
struct State {
    /// The first `kept` are blocks that nobody uses, the longest kept first.
    blocks: [Block; KEPT],
    kept: usize,
    bytes_kept: usize,
    bytes_used: usize,
    most_used: usize,
}

// SAFETY: nobody else has the blocks' addresses; only who holds the mutex follows them.
unsafe impl Send for State {}

impl Recycler {
    /// What may be held beyond the most that was ever in use, in bytes.
    pub const SLACK: usize = 32 << 20;

    /// An allocator that keeps nothing yet.
    #[expect(
        clippy::new_without_default,
        reason = "it is made in a static, by a const function"
    )]
    pub const fn new() -> Self {
        let none = Block {
            start: ptr::null_mut(),
            bytes: 0,
        };
        let state = State {
            blocks: [none; KEPT],
            kept: 0,
            bytes_kept: 0,
            bytes_used: 0,
            most_used: 0,
        };
        Self {
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of `bytes`, and whether it is all zero. Null if the system refuses.
    fn take(&self, bytes: usize) -> (*mut u8, bool) {
        let mut state = self.state();
        if let Some(block) = state.find(bytes) {
            state.used(bytes);
            return (block.start, false);
        }
        state.make_room(bytes);
        let mut start = map(bytes);
        if start.is_null() && state.kept > 0 {
            // The system has no more: not while others lie idle here.
            while state.kept > 0 {
                unmap(state.take_out(0));
            }
            start = map(bytes);
        }
        if !start.is_null() {
            state.used(bytes);
        }
        (start, true)
    }
}

impl State {
    /// Takes out the block of exactly `bytes` that was kept last: its content is the likeliest to
    /// be in a cache.
    fn find(&mut self, bytes: usize) -> Option<Block> {
        let index = self.blocks[..self.kept]
            .iter()
            .rposition(|block| block.bytes == bytes)?;
        Some(self.take_out(index))
    }

    fn take_out(&mut self, index: usize) -> Block {
        let block = self.blocks[index];
        self.blocks.copy_within(index + 1..self.kept, index);
        self.kept -= 1;
        self.bytes_kept -= block.bytes;
        block
    }

    fn used(&mut self, bytes: usize) {
        self.bytes_used += bytes;
        self.most_used = self.most_used.max(self.bytes_used);
    }

    /// Returns blocks until `bytes` more may be asked of the system.
    fn make_room(&mut self, bytes: usize) {
        let used = self.bytes_used + bytes;
        let limit = self.most_used.max(used) + Recycler::SLACK;
        while self.kept > 0 && used + self.bytes_kept > limit {
            unmap(self.take_out(0));
        }
    }

    fn keep(&mut self, block: Block) {
        self.bytes_used -= block.bytes;
        if self.kept == KEPT {
            unmap(self.take_out(0));
        }
        self.blocks[self.kept] = block;
        self.kept += 1;
        self.bytes_kept += block.bytes;
    }
}

/// Pages of the system's, all zero.
fn map(bytes: usize) -> *mut u8 {
    // SAFETY: a new mapping, wherever the system likes, overlaps nothing.
    let mapping = unsafe {
        mmap_anonymous(
            ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    let Some(start) = mapping.ok().and_then(|start| NonNull::new(start.cast())) else {
        return ptr::null_mut();
    };
    // SAFETY: the bytes were mapped just now.
    unsafe { pages::prefer_large(start, bytes) };
    start.as_ptr()
}

fn unmap(block: Block) {
    // SAFETY: the whole of a mapping of ours, which nobody uses. Should the system refuse, the
    // memory is lost, which harms nobody.
    let _ = unsafe { munmap(block.start.cast(), block.bytes) };
}

/// The smallest page there is. Not asked of the system: the answer may need an allocation, and this
/// is where allocations are made.
const PAGE: usize = 4096;

/// What is asked of the system for `layout`, if it is a large block.
fn large(layout: Layout) -> Option<usize> {
    let aligned = layout.align() <= PAGE;
    (layout.size() >= LARGE && aligned).then(|| layout.size().next_multiple_of(GRAIN))
}

// SAFETY: a block is handed out once until it is freed, is as large as asked and begins at a page;
// which allocator a block belongs to follows from its layout alone. Nothing here panics or unwinds.
unsafe impl GlobalAlloc for Recycler {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match large(layout) {
            Some(bytes) => self.take(bytes).0,
            // SAFETY: as of this function.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(bytes) = large(layout) else {
            // SAFETY: as of this function.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let (start, zero) = self.take(bytes);
        if !zero {
            // SAFETY: the block has at least as many bytes.
            unsafe { start.write_bytes(0, layout.size()) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match large(layout) {
            Some(bytes) => self.state().keep(Block { start, bytes }),
            // SAFETY: as of this function.
            None => unsafe { System.dealloc(start, layout) },
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size` is above 0 and makes a layout.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (large(layout), large(new)) {
            // SAFETY: as of this function; the system's before and after.
            (None, None) => unsafe { System.realloc(start, layout, size) },
            (Some(before), Some(after)) if before == after => start,
            // SAFETY: a new block, to which what both have room for is copied; then the old one goes.
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(start, layout.size().min(size));
                    self.dealloc(start, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GRAIN, LARGE, Recycler};
    use std::alloc::{GlobalAlloc, Layout};

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 16).unwrap()
    }

    fn held(recycler: &Recycler) -> (usize, usize) {
        let state = recycler.state();
        (state.bytes_used, state.bytes_kept)
    }

    #[test]
    fn a_freed_block_is_given_to_the_next_who_asks_for_as_much() {
        let recycler = Recycler::new();
        // SAFETY: each block is freed once, with its layout, and written within its size.
        unsafe {
            let first = recycler.alloc(layout(LARGE));
            first.write_bytes(7, LARGE);
            recycler.dealloc(first, layout(LARGE));
            assert_eq!(held(&recycler), (0, LARGE));
            let other = recycler.alloc(layout(LARGE + GRAIN));
            assert_ne!(other, first);
            let again = recycler.alloc(layout(LARGE - 5 + 5));
            assert_eq!(again, first);
            assert_eq!(held(&recycler), (2 * LARGE + GRAIN, 0));
            recycler.dealloc(again, layout(LARGE));
            let zeroed = recycler.alloc_zeroed(layout(LARGE));
            assert_eq!(zeroed, first);
            assert_eq!((zeroed.read(), zeroed.add(LARGE - 1).read()), (0, 0));
        }
    }

    #[test]
    fn no_more_is_kept_than_was_ever_in_use_and_the_slack() {
        let recycler = Recycler::new();
        // SAFETY: as above.
        unsafe {
            for blocks in 1..200 {
                let bytes = layout(LARGE + blocks * GRAIN);
                let started = recycler.alloc(bytes);
                recycler.dealloc(started, bytes);
                let (used, kept) = held(&recycler);
                let most = recycler.state().most_used;
                assert!(
                    used + kept <= most + Recycler::SLACK,
                    "{kept} kept, {most} used at most"
                );
            }
            // Of all those sizes, the slack has room for a few of the last.
            assert!(held(&recycler).1 > Recycler::SLACK / 2);
        }
    }

    #[test]
    fn a_block_that_grows_keeps_what_it_holds() {
        let recycler = Recycler::new();
        // SAFETY: as above.
        unsafe {
            let mut sizes = [1000, 2000, LARGE, LARGE + 1, LARGE + GRAIN, 3 * LARGE, 100].iter();
            let mut size = *sizes.next().unwrap();
            let mut block = recycler.alloc(layout(size));
            block.write_bytes(7, 100);
            for &next in sizes {
                let moved = recycler.realloc(block, layout(size), next);
                if (size, next) == (LARGE + 1, LARGE + GRAIN) {
                    assert_eq!(moved, block, "there was room");
                }
                (block, size) = (moved, next);
                assert!((0..100).all(|byte| block.add(byte).read() == 7));
            }
            recycler.dealloc(block, layout(size));
            assert_eq!(held(&recycler).0, 0);
        }
    }

    #[test]
    fn small_and_oddly_aligned_blocks_are_the_systems() {
        let recycler = Recycler::new();
        for layout in [
            layout(100),
            Layout::from_size_align(LARGE, 1 << 16).unwrap(),
        ] {
            // SAFETY: as above.
            unsafe {
                let start = recycler.alloc(layout);
                assert_eq!(start.align_offset(layout.align()), 0);
                recycler.dealloc(start, layout);
            }
            assert_eq!(held(&recycler), (0, 0));
        }
    }
}
