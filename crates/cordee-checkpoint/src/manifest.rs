//! `MANIFEST.json`: what a committed checkpoint holds. Written last; its presence, whole and sound,
//! is what makes a directory a checkpoint.
//!
//! The last field is the xxh3-128 of every byte of the file before it, so the file is checked as it
//! lies on disk, without a canonical form of JSON.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::hash::hash_memory;
use crate::record::FORMAT;
use crate::{CheckpointError, Piece, Plan, Result, TensorSpec, WriterRecord};

/// Between the fields under the checksum and the checksum.
const BEFORE_CHECKSUM: &str = ",\n  \"checksum\": \"";
const AFTER_CHECKSUM: &str = "\"\n}\n";
const CHECKSUM_DIGITS: usize = 32;

/// The fields of the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Version of the format.
    pub(crate) format: u32,
    /// Optimizer step that the checkpoint was taken after.
    pub(crate) step: u64,
    /// Every tensor with its global shape.
    pub(crate) tensors: Vec<TensorSpec>,
    /// What each writer wrote, by writer.
    pub(crate) writers: Vec<WriterRecord>,
    /// The caller's own.
    pub(crate) state: Value,
}

/// The version alone, so that a newer format is named as such and not as a missing field.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest is always JSON");
        let end = text
            .strip_suffix("\n}")
            .expect("pretty JSON objects end so")
            .len();
        text.truncate(end);
        let checksum = hash_memory(&[text.as_bytes()]);
        text += BEFORE_CHECKSUM;
        text += &checksum;
        text += AFTER_CHECKSUM;
        text.into_bytes()
    }

    /// The manifest in `bytes` and the plan that its writers followed, both checked in themselves.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<(Self, Plan)> {
        let damaged = |reason: String| CheckpointError::damaged(path, reason);
        check_tail(bytes).map_err(|reason| damaged(reason.to_owned()))?;
        let not_json = |error: serde_json::Error| damaged(format!("not a manifest: {error}"));
        let Version { format } = serde_json::from_slice(bytes).map_err(not_json)?;
        if format != FORMAT {
            return Err(damaged(format!(
                "its format is {format}, this version reads {FORMAT}"
            )));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(not_json)?;
        let plan = manifest.plan().map_err(damaged)?;
        Ok((manifest, plan))
    }

    /// The plan that the records amount to, if they agree with each other and with the tensors.
    fn plan(&self) -> Result<Plan, String> {
        let index: HashMap<_, _> = (self.tensors.iter().enumerate())
            .map(|(index, tensor)| (tensor.name.as_str(), index))
            .collect();
        for tensor in &self.tensors {
            tensor.validate().map_err(|error| error.to_string())?;
        }
        let mut pieces = Vec::new();
        for (writer, record) in self.writers.iter().enumerate() {
            record.check(writer)?;
            for piece in &record.pieces {
                let tensor = *index.get(piece.tensor.as_str()).ok_or_else(|| {
                    format!(
                        "writer {writer} has a piece of unknown tensor `{}`",
                        piece.tensor
                    )
                })?;
                let end = piece
                    .len
                    .checked_mul(self.tensors[tensor].element_size())
                    .and_then(|bytes| bytes.checked_add(piece.offset));
                if end.is_none_or(|end| end > record.length) {
                    return Err(format!(
                        "writer {writer}'s piece of tensor `{}` at element {} lies outside its shard",
                        piece.tensor, piece.start
                    ));
                }
                pieces.push(Piece {
                    tensor,
                    start: piece.start,
                    len: piece.len,
                    writer,
                });
            }
        }
        Plan::from_pieces(&self.tensors, self.writers.len(), pieces)
            .map_err(|error| error.to_string())
    }
}

/// Whether the file ends with the checksum of what stands before it.
fn check_tail(bytes: &[u8]) -> Result<(), &'static str> {
    let cut = "it ends before its checksum";
    let rest = bytes.strip_suffix(AFTER_CHECKSUM.as_bytes()).ok_or(cut)?;
    let (rest, checksum) = rest.split_last_chunk::<CHECKSUM_DIGITS>().ok_or(cut)?;
    let body = rest.strip_suffix(BEFORE_CHECKSUM.as_bytes()).ok_or(cut)?;
    if hash_memory(&[body]).as_bytes() != checksum {
        return Err("its own checksum differs from its bytes");
    }
    Ok(())
}
