//! What a writer says about its shard, in a JSON file beside it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::layout::shard_name;
use crate::{CheckpointError, Result};

/// Bytes of a shard under one checksum, unless a caller wants something else.
pub const BLOCK_SIZE: usize = 16 << 20;

/// A reader holds whole blocks in memory, so they cannot be arbitrarily large.
pub(crate) const MAX_BLOCK_SIZE: u64 = 1 << 30;

/// Smaller ones would make more checksums than are worth it.
pub(crate) const MIN_BLOCK_SIZE: u64 = 4096;

/// Version of what is on disk; a reader refuses any other.
pub(crate) const FORMAT: u32 = 1;

/// A piece of a tensor in a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PieceRecord {
    /// Name of the tensor.
    pub tensor: String,
    /// First element, in the flattened tensor.
    pub start: u64,
    /// Elements.
    pub len: u64,
    /// First byte in the file.
    pub offset: u64,
}

/// What one writer wrote. Its file appears only once the shard is synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterRecord {
    /// Version of the format.
    pub format: u32,
    /// The writer, 0-based.
    pub writer: usize,
    /// Hash of the plan that it followed.
    pub plan: String,
    /// Name of the shard in the same directory.
    pub file: String,
    /// Size of the shard in bytes.
    pub length: u64,
    /// Bytes under one checksum; the last block may be shorter.
    pub block_size: u64,
    /// xxh3-64 of each block, 16 hex digits.
    pub checksums: Vec<String>,
    /// The pieces, by offset.
    pub pieces: Vec<PieceRecord>,
    /// Hash of what the writer's rank held in memory, to compare with its replicas.
    pub memory_hash: Option<String>,
}

impl WriterRecord {
    /// The bytes of its file: the same for the same record.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a record is always JSON");
        bytes.push(b'\n');
        bytes
    }

    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|error| {
            CheckpointError::damaged(path, format!("not a writer's record: {error}"))
        })
    }

    /// First byte and length of a block of the shard; `block` must be one of [`Self::blocks`].
    pub(crate) fn block_range(&self, block: u64) -> (u64, u64) {
        let offset = block * self.block_size;
        (offset, self.block_size.min(self.length - offset))
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.length.div_ceil(self.block_size)
    }

    /// Whether it is sound as the record of `writer`, without a look at the shard.
    pub(crate) fn check(&self, writer: usize) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!(
                "its format is {}, this version reads {FORMAT}",
                self.format
            ));
        }
        if self.writer != writer {
            return Err(format!(
                "it is of writer {}, expected writer {writer}",
                self.writer
            ));
        }
        // Also what keeps a reader inside the directory.
        if self.file != shard_name(writer) {
            return Err(format!("writer {writer}'s shard is named `{}`", self.file));
        }
        check_block_size(self.block_size).map_err(|error| error.to_string())?;
        if self.blocks() != self.checksums.len() as u64 {
            return Err(format!(
                "writer {writer} has {} checksums for {} blocks",
                self.checksums.len(),
                self.blocks()
            ));
        }
        Ok(())
    }
}

pub(crate) fn check_block_size(block_size: u64) -> Result<()> {
    if (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        return Ok(());
    }
    Err(CheckpointError::InvalidBlockSize { block_size })
}
