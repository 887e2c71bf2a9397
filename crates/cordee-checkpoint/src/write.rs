//! One writer's part of a save: its shard, then its record.

use std::path::Path;

use crate::durable::{sync_directory, write_file};
use crate::layout::{ShardLayout, record_name, shard_name};
use crate::record::{FORMAT, check_block_size};
use crate::stream::write_new_file;
use crate::{CheckpointError, Plan, Result, TensorSource, WriterRecord};

/// Writes the shard of `writer` and its record into the directory that [`crate::begin`] made.
///
/// `memory_hash` is a hash of what the rank holds, to be compared with its replicas at the commit, where there
/// are any. Each `block_size` bytes of the file get a checksum ([`crate::BLOCK_SIZE`]).
///
/// When this returns, both files are synced. After an error neither is there and the attempt must be
/// abandoned; do not call again in the same directory.
pub fn write_shard(
    temporary_dir: &Path,
    writer: usize,
    plan: &Plan,
    source: &dyn TensorSource,
    memory_hash: Option<String>,
    block_size: usize,
) -> Result<WriterRecord> {
    let block_size = block_size as u64;
    check_block_size(block_size)?;
    if writer >= plan.writers() {
        return Err(CheckpointError::UnknownWriter {
            writer,
            writers: plan.writers(),
        });
    }
    let layout = ShardLayout::new(plan, writer)?;
    let file = shard_name(writer);
    let shard = temporary_dir.join(&file);
    let checksums = write_new_file(&shard, layout.length, block_size, &mut |offset, out| {
        layout.produce(source, offset, out)
    })?;
    let record = WriterRecord {
        format: FORMAT,
        writer,
        plan: plan.hash(),
        file,
        length: layout.length,
        block_size,
        checksums,
        pieces: layout.pieces,
        memory_hash,
    };
    write_file(&temporary_dir.join(record_name(writer)), &record.encode())
        .and_then(|()| sync_directory(temporary_dir))
        .inspect_err(|_| {
            // Room for the others; the error at hand matters more than one of removing.
            let _ = fs_err::remove_file(temporary_dir.join(record_name(writer)));
            let _ = fs_err::remove_file(&shard);
        })?;
    Ok(record)
}
