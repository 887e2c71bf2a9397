//! Large pages for large memory, where the system leaves the choice to the program.

use std::ptr::NonNull;

use rustix::mm::Advice;

/// From this size on, memory is worth pages of 2 MiB: with small ones, streaming through it spends
/// a good part of its time on address translation.
const WORTH_IT: usize = 2 * 1024 * 1024;

/// What addresses are rounded to: every size of page that a system may have divides it. Not asked of
/// the system, whose answer may need an allocation: the allocator calls this.
const PAGE: usize = 64 * 1024;

/// Asks for large pages in `bytes` from `first`. They are still given out only when touched. What
/// the system does with the wish is its own affair.
///
/// # Safety
///
/// The bytes are part of one mapping or allocation of the caller's.
pub(crate) unsafe fn prefer_large(first: NonNull<u8>, bytes: usize) {
    let page = PAGE;
    let skipped = first.align_offset(page);
    if bytes < WORTH_IT || skipped > bytes {
        return;
    }
    let whole = (bytes - skipped) / page * page;
    // SAFETY: whole pages inside the caller's memory; the advice leaves their contents alone.
    let _ = unsafe {
        rustix::mm::madvise(
            first.add(skipped).as_ptr().cast(),
            whole,
            Advice::LinuxHugepage,
        )
    };
}
