//! Names of directories and files, and where each piece lies in a shard.
//!
//! A shard is a safetensors file: eight bytes of header length, a JSON header, then the pieces one
//! after the other. The header is padded so that the pieces begin at a multiple of 4 KiB (the format
//! allows no gaps between tensors, but any white space after the header).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;

use crate::record::PieceRecord;
use crate::{CheckpointError, Plan, Result, TensorSource};

pub(crate) const MANIFEST: &str = "MANIFEST.json";
pub(crate) const LATEST: &str = "LATEST";
pub(crate) const TEMPORARY: &str = ".tmp-";
pub(crate) const TRASH: &str = ".trash-";
/// Of checkpoints of a course that the run has left; a number keeps them apart.
pub(crate) const SET_ASIDE: &str = "left-";

/// Unit of direct writes, and what the header is padded to.
pub(crate) const ALIGNMENT: usize = 4096;

/// Longest header that readers of the format accept.
const MAX_HEADER: usize = 100_000_000;

/// Where the checkpoint of `step` lies once it is committed.
pub fn committed_path(checkpoints_dir: &Path, step: u64) -> PathBuf {
    checkpoints_dir.join(directory_name(step))
}

/// Name of the directory of a step: `step-000001200`.
pub(crate) fn directory_name(step: u64) -> String {
    format!("step-{step:09}")
}

/// Where the attempt to save `step` lies until it is committed; every writer can derive it.
pub fn temporary_path(checkpoints_dir: &Path, step: u64) -> PathBuf {
    checkpoints_dir.join(format!("{TEMPORARY}{}", directory_name(step)))
}

/// The step that a name stands for, if it is what [`directory_name`] gives.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (directory_name(step) == name).then_some(step)
}

pub(crate) fn shard_name(writer: usize) -> String {
    format!("rank-{writer:05}.safetensors")
}

pub(crate) fn record_name(writer: usize) -> String {
    format!("rank-{writer:05}.json")
}

/// What a shard looks like, before a byte of it is written.
pub(crate) struct ShardLayout {
    /// The file's first bytes, up to the first piece.
    pub(crate) header: Vec<u8>,
    /// The pieces, by offset.
    pub(crate) pieces: Vec<PieceRecord>,
    /// Bytes of one element of each piece.
    element_sizes: Vec<u64>,
    /// Size of the file in bytes.
    pub(crate) length: u64,
}

impl ShardLayout {
    pub(crate) fn new(plan: &Plan, writer: usize) -> Result<Self> {
        let mut pieces: Vec<_> = plan.pieces_of(writer).collect();
        // Wide elements first, so that every piece is aligned to its elements.
        pieces.sort_by_key(|piece| std::cmp::Reverse(plan.tensors()[piece.tensor].element_size()));
        let mut entries = BTreeMap::new();
        let mut records = Vec::with_capacity(pieces.len());
        let mut element_sizes = Vec::with_capacity(pieces.len());
        let mut end = 0;
        for piece in pieces {
            let tensor = &plan.tensors()[piece.tensor];
            let whole = piece.len == tensor.elements();
            let offset = end;
            end += piece.len * tensor.element_size();
            let (name, shape) = if whole {
                (tensor.name.clone(), tensor.shape.clone())
            } else {
                (
                    format!("{}@{}", tensor.name, piece.start),
                    vec![piece.len as usize],
                )
            };
            let info = TensorInfo {
                dtype: tensor.dtype,
                shape,
                data_offsets: (offset as usize, end as usize),
            };
            entries.insert(name, info);
            element_sizes.push(tensor.element_size());
            records.push(PieceRecord {
                tensor: tensor.name.clone(),
                start: piece.start,
                len: piece.len,
                offset,
            });
        }
        let json = serde_json::to_vec(&entries).expect("names and numbers are always JSON");
        let padded = (8 + json.len()).next_multiple_of(ALIGNMENT);
        if padded > MAX_HEADER {
            return Err(CheckpointError::InvalidPlan {
                reason: format!("writer {writer} has too many pieces for a safetensors header"),
            });
        }
        let mut header = ((padded - 8) as u64).to_le_bytes().to_vec();
        header.extend(json);
        header.resize(padded, b' ');
        for record in &mut records {
            record.offset += padded as u64;
        }
        Ok(Self {
            header,
            pieces: records,
            element_sizes,
            length: padded as u64 + end,
        })
    }

    /// The file's bytes from `offset` on, which must end within the file.
    pub(crate) fn produce(
        &self,
        source: &dyn TensorSource,
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let mut filled = 0;
        if let Some(header) = usize::try_from(offset)
            .ok()
            .and_then(|start| self.header.get(start..))
        {
            filled = header.len().min(out.len());
            out[..filled].copy_from_slice(&header[..filled]);
        }
        while filled < out.len() {
            let at = offset + filled as u64;
            let index = self.pieces.partition_point(|piece| piece.offset <= at) - 1;
            let (piece, size) = (&self.pieces[index], self.element_sizes[index]);
            let within = at - piece.offset;
            let len = (piece.len * size - within).min((out.len() - filled) as u64);
            let from = piece.start * size + within;
            source
                .copy_bytes(&piece.tensor, from, &mut out[filled..filled + len as usize])
                .map_err(|reason| CheckpointError::Source {
                    tensor: piece.tensor.clone(),
                    offset: from,
                    len,
                    reason,
                })?;
            filled += len as usize;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        for step in [0, 1200, 999_999_999, 1_000_000_000, u64::MAX] {
            assert_eq!(step_of(&directory_name(step)), Some(step));
        }
        assert_eq!(directory_name(1200), "step-000001200");
        for name in [
            "step-1200",
            "step-",
            "step-+00000001",
            "step-0000001200",
            "xstep-000001200",
            "LATEST",
        ] {
            assert_eq!(step_of(name), None, "{name}");
        }
    }
}
