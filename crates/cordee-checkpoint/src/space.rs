//! Room on a file system: what a checkpoint takes, and what there is.

use std::io;
use std::path::Path;

use rustix::fs::statvfs;

use crate::layout::{ALIGNMENT, ShardLayout};
use crate::{BLOCK_SIZE, Plan, Result};

/// An upper bound of the bytes that a checkpoint of this plan takes on disk, with blocks of
/// [`BLOCK_SIZE`] and a state of up to 64 KiB.
pub fn space_needed(plan: &Plan) -> Result<u64> {
    // Sizes of JSON, generously: a line per checksum, a few per piece, tensor and writer.
    let name_bytes = |name: &str| 6 * name.len() as u64;
    let round = |bytes: u64| bytes.next_multiple_of(ALIGNMENT as u64);
    let mut shards = 0;
    let mut records = 0;
    for writer in 0..plan.writers() {
        let layout = ShardLayout::new(plan, writer)?;
        let pieces: u64 = layout
            .pieces
            .iter()
            .map(|piece| 256 + name_bytes(&piece.tensor))
            .sum();
        shards += round(layout.length);
        records += round(1024 + pieces + 40 * layout.length.div_ceil(BLOCK_SIZE as u64));
    }
    let tensors: u64 = (plan.tensors().iter())
        .map(|tensor| 128 + name_bytes(&tensor.name) + 32 * tensor.shape.len() as u64)
        .sum();
    // Records once as files and once in the manifest; then the directory and `LATEST`.
    let directory = round(128 * plan.writers() as u64) + round(1);
    Ok(shards + 2 * records + round(tensors + (64 << 10)) + directory)
}

/// Bytes that this user may still write to the file system of `path`, quotas aside.
pub fn free_space(path: &Path) -> Result<u64> {
    let status = statvfs(path).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(
            error.kind(),
            format!(
                "failed to ask for the free space of {}: {error}",
                path.display()
            ),
        )
    })?;
    Ok(status.f_bavail * status.f_frsize)
}
