//! Memory that several holders map: growing, buffers inside, and what is refused.

#![expect(
    clippy::float_cmp,
    reason = "what is written is what is read, bit by bit"
)]

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
};

use cordee_memory::{ALIGNMENT, Buffer, DType, MemoryError, SharedMemory};
use rustix::fs::MemfdFlags;

const PAGE: usize = 65_536;

#[test]
fn what_one_mapping_writes_the_other_reads() {
    let memory = SharedMemory::create("test").unwrap();
    let inherited = SharedMemory::inherited(memory.as_fd().as_raw_fd()).unwrap();
    assert!(memory.is_empty().unwrap());
    let (one, other) = (
        memory.map(PAGE, PAGE).unwrap(),
        inherited.map(PAGE, PAGE).unwrap(),
    );
    assert_eq!(
        (one.len(), one.file_offset(), memory.len().unwrap()),
        (PAGE, PAGE, 2 * PAGE)
    );
    // SAFETY: the mappings are new, and this thread is the only one to use them.
    let (mut written, read) = unsafe {
        (
            Buffer::in_shared(&one, ALIGNMENT, DType::F32, 100).unwrap(),
            Buffer::in_shared(&other, ALIGNMENT, DType::F32, 100).unwrap(),
        )
    };
    assert_eq!(written.shared_offset(), Some(PAGE + ALIGNMENT));
    assert!(
        written
            .as_slice::<f32>()
            .unwrap()
            .iter()
            .all(|&element| element == 0.0)
    );
    written.as_mut_slice::<f32>().unwrap()[99] = 3.0;
    assert_eq!(read.as_slice::<f32>().unwrap()[99], 3.0);
    // The buffer keeps its mapping, and the mapping its memory.
    drop((one, other, memory, inherited));
    assert_eq!(read.as_slice::<f32>().unwrap()[99], 3.0);
}

#[test]
fn a_detached_piece_is_private_and_zero() {
    let memory = SharedMemory::create("test").unwrap();
    let (one, other) = (
        memory.map(0, 2 * PAGE).unwrap(),
        memory.map(0, 2 * PAGE).unwrap(),
    );
    let mut written = [0, PAGE].map(|offset| {
        // SAFETY: two places of a mapping that only this thread uses.
        unsafe { Buffer::in_shared(&one, offset, DType::F32, 8) }.unwrap()
    });
    let read = [0, PAGE].map(|offset| {
        // SAFETY: as above.
        unsafe { Buffer::in_shared(&other, offset, DType::F32, 8) }.unwrap()
    });
    for buffer in &mut written {
        buffer.as_mut_slice::<f32>().unwrap().fill(1.0);
    }
    // SAFETY: no borrow of the second buffer is alive.
    unsafe { one.detach(PAGE..2 * PAGE) }.unwrap();
    assert_eq!(written[1].as_slice::<f32>().unwrap(), [0.0; 8]);
    written[1].as_mut_slice::<f32>().unwrap().fill(2.0);
    written[0].as_mut_slice::<f32>().unwrap().fill(2.0);
    assert_eq!(read[1].as_slice::<f32>().unwrap(), [1.0; 8]);
    assert_eq!(read[0].as_slice::<f32>().unwrap(), [2.0; 8]);
    // SAFETY: refused before anything is touched.
    let outside = unsafe { one.detach(PAGE..3 * PAGE) };
    assert!(matches!(outside, Err(MemoryError::OutsideMapping { .. })));
}

/// Many grow at once to different sizes: the largest wins and nobody shrinks it.
#[test]
fn growing_is_safe_in_any_order() {
    for _ in 0..50 {
        let memory = SharedMemory::create("test").unwrap();
        thread::scope(|scope| {
            for holder in 0..8 {
                let memory = memory.try_clone().unwrap();
                scope.spawn(move || {
                    for step in 1..20 {
                        let bytes = step * PAGE + holder;
                        memory.grow(bytes).unwrap();
                        assert!(memory.len().unwrap() >= bytes);
                    }
                });
            }
        });
        assert_eq!(memory.len().unwrap(), 19 * PAGE + 7);
    }
}

#[test]
fn nobody_can_shrink_it() {
    let memory = SharedMemory::create("test").unwrap();
    memory.grow(PAGE).unwrap();
    let file = File::from(OwnedFd::from(memory.try_clone().unwrap()));
    assert!(file.set_len(1).is_err());
    assert_eq!(memory.len().unwrap(), PAGE);
}

#[test]
fn other_descriptors_are_refused() {
    let ordinary = File::open("/proc/self/exe").unwrap();
    let error = SharedMemory::from_fd(ordinary.into()).unwrap_err();
    assert!(
        error.to_string().ends_with("it is not a file in memory"),
        "{error}"
    );
    // A file in memory that was made without leave to seal it.
    let open = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    let error = SharedMemory::from_fd(open).unwrap_err();
    assert!(error.to_string().contains("forbids the seal"), "{error}");
    let sealable = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
    let adopted = SharedMemory::from_fd(sealable).unwrap();
    adopted.grow(PAGE).unwrap();
    assert!(
        File::from(OwnedFd::from(adopted)).set_len(1).is_err(),
        "sealed when adopted"
    );
    let error = SharedMemory::inherited(987_654).unwrap_err();
    assert!(
        matches!(error, MemoryError::System { call: "open", .. }),
        "{error:?}"
    );
}

#[test]
fn buffers_stay_inside_their_mapping() {
    let memory = SharedMemory::create("test").unwrap();
    let mapping = memory.map(0, PAGE).unwrap();
    for (offset, len, fits) in [
        (0, PAGE / 4, true),
        (PAGE, 0, true),
        (ALIGNMENT, PAGE / 4, false),
        (PAGE, 1, false),
    ] {
        // SAFETY: no buffer of this loop outlives its turn, and none is used.
        let buffer = unsafe { Buffer::in_shared(&mapping, offset, DType::F32, len) };
        assert_eq!(
            buffer.is_ok(),
            fits,
            "{len} elements at {offset}: {buffer:?}"
        );
    }
    // SAFETY: refused.
    let error = unsafe { Buffer::in_shared(&mapping, 8, DType::F32, 1) }.unwrap_err();
    assert!(
        matches!(error, MemoryError::Misaligned { offset: 8 }),
        "{error:?}"
    );
}
