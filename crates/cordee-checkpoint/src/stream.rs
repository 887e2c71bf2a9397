//! Writes one large file as fast as the disk takes it, and checksums it on the way.
//!
//! Bytes are produced into a few aligned buffers and written at their positions by a few threads,
//! past the page cache where the file system can (two to four times as fast as through it and a sync,
//! and training's page cache stays as it is). Memory: [`BUFFERS`] times [`BUFFER`] bytes.

use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use fs_err::os::unix::fs::{FileExt, OpenOptionsExt};
use fs_err::{File, OpenOptions};
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::durable::name_lack_of_space;
use crate::layout::ALIGNMENT;
use crate::{CheckpointError, Result, free_space};

/// Bytes of one write.
const BUFFER: usize = 4 << 20;
/// Buffers: one is filled while the others are written.
const BUFFERS: usize = 4;
/// Writes in flight.
const WRITES: usize = 3;

/// Writes a new file of `length` bytes, syncs it, and returns the checksum of each block.
///
/// `produce(offset, out)` gives the bytes from `offset` on; it is called in order. Room is taken
/// before the first byte, where the file system can. Whatever fails, the file is removed.
pub(crate) fn write_new_file(
    path: &Path,
    length: u64,
    block_size: u64,
    produce: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<Vec<String>> {
    let file = create(path)?;
    let written = allocate(&file, length)
        .and_then(|()| write_all(&file, length, block_size, produce))
        .and_then(|checksums| {
            // Direct writes are whole units; this cuts the last one.
            file.set_len(length)?;
            file.sync_all()?;
            Ok(checksums)
        });
    written.map_err(|error| {
        drop(file);
        let error = match error {
            CheckpointError::Io(error) => name_lack_of_space(error, path, length),
            other => other,
        };
        // The error at hand matters more than one of removing what it left.
        let _ = fs_err::remove_file(path);
        error
    })
}

/// A new file: one that is there already belongs to somebody else's attempt.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let direct = options
        .clone()
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path);
    match direct {
        // Some file systems refuse the flag, after they have made the file.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let _ = fs_err::remove_file(path);
            options.open(path)
        }
        other => other,
    }
}

/// Takes the room for the file, so that a lack of it shows before byte 1.
fn allocate(file: &File, length: u64) -> Result<()> {
    let rounded = length.next_multiple_of(ALIGNMENT as u64);
    match fallocate(file, FallocateFlags::empty(), 0, rounded) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            let parent = file.path().parent().unwrap_or(Path::new("."));
            let available = free_space(parent)?;
            if available < rounded {
                return Err(CheckpointError::NoSpace {
                    path: file.path().to_owned(),
                    needed: length,
                    available,
                });
            }
            Ok(())
        }
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// A buffer that begins at a multiple of [`ALIGNMENT`], as direct writes need.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new(size: usize) -> Self {
        let bytes = vec![0; size + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start }
    }

    fn get_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// A filled buffer on its way to the disk.
struct Write {
    buffer: Buffer,
    len: usize,
    offset: u64,
}

fn write_all(
    file: &File,
    length: u64,
    block_size: u64,
    produce: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<Vec<String>> {
    let buffers = (length.div_ceil(BUFFER as u64) as usize).clamp(1, BUFFERS);
    let (to_write, writes) = mpsc::channel::<Write>();
    let (done, returned) = mpsc::channel::<io::Result<Buffer>>();
    let writes = Mutex::new(writes);
    let mut hasher = BlockHasher::new(block_size);
    thread::scope(|scope| {
        for _ in 0..buffers.min(WRITES) {
            let (done, writes) = (done.clone(), &writes);
            scope.spawn(move || write_buffers(file, writes, &done));
        }
        drop(done);
        let size = BUFFER.min((length as usize).next_multiple_of(ALIGNMENT));
        let mut free: Vec<_> = (0..buffers).map(|_| Buffer::new(size)).collect();
        let mut offset = 0;
        let mut failed = None;
        while offset < length && failed.is_none() {
            let Some(mut buffer) = free.pop() else {
                match returned.recv().expect("a writing thread never panics") {
                    Ok(buffer) => free.push(buffer),
                    Err(error) => failed = Some(error.into()),
                }
                continue;
            };
            let filled = (size as u64).min(length - offset) as usize;
            let len = filled.next_multiple_of(ALIGNMENT);
            let bytes = buffer.get_mut(len);
            bytes[filled..].fill(0);
            match produce(offset, &mut bytes[..filled]) {
                Ok(()) => hasher.update(&bytes[..filled]),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            to_write
                .send(Write {
                    buffer,
                    len,
                    offset,
                })
                .expect("the receiver outlives this scope");
            offset += filled as u64;
        }
        drop(to_write);
        let last = returned
            .into_iter()
            .find_map(io::Result::err)
            .map(CheckpointError::from);
        failed.or(last).map_or(Ok(()), Err)
    })?;
    Ok(hasher.finish())
}

fn write_buffers(file: &File, writes: &Mutex<Receiver<Write>>, done: &Sender<io::Result<Buffer>>) {
    loop {
        let next = writes.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut write) = next else { return };
        let bytes = write.buffer.get_mut(write.len);
        let mut result = file.write_all_at(bytes, write.offset);
        if result
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput)
        {
            // Direct writes can be refused at the first write only: go on through the page cache.
            result = fcntl_getfl(file)
                .and_then(|flags| fcntl_setfl(file, flags - OFlags::DIRECT))
                .map_err(io::Error::from)
                .and_then(|()| file.write_all_at(bytes, write.offset));
        }
        if done.send(result.map(|()| write.buffer)).is_err() {
            return;
        }
    }
}

/// Checksums of blocks, from bytes that come in any portions.
struct BlockHasher {
    block_size: usize,
    filled: usize,
    hasher: Xxh3,
    checksums: Vec<String>,
}

impl BlockHasher {
    fn new(block_size: u64) -> Self {
        Self {
            block_size: block_size as usize,
            filled: 0,
            hasher: Xxh3::new(),
            checksums: Vec::new(),
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.block_size - self.filled));
            self.hasher.update(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == self.block_size {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        self.checksums
            .push(format!("{:016x}", self.hasher.digest()));
        self.hasher.reset();
        self.filled = 0;
    }

    fn finish(mut self) -> Vec<String> {
        if self.filled > 0 {
            self.end_block();
        }
        self.checksums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::checksum;

    #[test]
    fn blocks_are_hashed_alike_in_any_portions() {
        let bytes: Vec<u8> = (0..20_000_u32).map(|index| (index * 7 / 3) as u8).collect();
        let expected: Vec<_> = bytes.chunks(4096).map(checksum).collect();
        for portion in [1, 100, 4096, 5000, 20_000] {
            let mut hasher = BlockHasher::new(4096);
            bytes
                .chunks(portion)
                .for_each(|portion| hasher.update(portion));
            assert_eq!(hasher.finish(), expected, "portions of {portion}");
        }
    }

    #[test]
    fn lengths_around_a_unit_and_a_buffer_come_back() {
        let directory = tempfile::tempdir().unwrap();
        for length in [
            1,
            4095,
            4096,
            4097,
            BUFFER - 1,
            BUFFER,
            BUFFER + 1,
            6 * BUFFER + 5,
        ] {
            let expected: Vec<u8> = (0..length)
                .map(|index| (index / 3 + index / 1000) as u8)
                .collect();
            let path = directory.path().join(length.to_string());
            let checksums = write_new_file(&path, length as u64, 1 << 16, &mut |offset, out| {
                out.copy_from_slice(&expected[offset as usize..][..out.len()]);
                Ok(())
            })
            .unwrap();
            assert_eq!(
                checksums,
                expected.chunks(1 << 16).map(checksum).collect::<Vec<_>>()
            );
            assert!(fs_err::read(&path).unwrap() == expected, "{length} bytes");
        }
    }

    #[test]
    fn a_file_that_is_there_is_left_alone_and_a_failed_one_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("there");
        fs_err::write(&there, b"mine").unwrap();
        let error = write_new_file(&there, 4, 4096, &mut |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains("there"), "{error}");
        assert_eq!(fs_err::read(&there).unwrap(), b"mine");

        let failed = directory.path().join("failed");
        let error = write_new_file(&failed, 3 * BUFFER as u64, 4096, &mut |offset, _| {
            if offset == 0 {
                Ok(())
            } else {
                Err(CheckpointError::damaged("x", "on purpose"))
            }
        });
        assert!(error.unwrap_err().to_string().contains("on purpose"));
        assert!(!failed.exists());
    }
}
