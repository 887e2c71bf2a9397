//! Checkpoints on disk: who writes what, shards, the commit, verification, resharding, retention.
//!
//! A checkpoint is a directory `step-000001200` that holds, for every writer, `rank-00000.safetensors`
//! and `rank-00000.json` (its length and a checksum per block), and `MANIFEST.json`, written last.
//! It comes into being in this order, and at every point in between a crash leaves the previous
//! checkpoint as the newest valid one:
//!
//! 1. writer 0 calls [`begin`], which makes `.tmp-step-000001200`; the caller's barrier follows;
//! 2. every writer calls [`write_shard`] there (each shard is synced before its record appears);
//! 3. writer 0 calls [`commit`], which waits for all records, writes the manifest, syncs, renames;
//! 4. writer 0 may call [`retain`], now that the new checkpoint is durable.
//!
//! [`newest_valid`] finds the checkpoint to go on from, and says why it passed over others.
//! A [`Plan`] is a pure function of the tensors and the number of writers, so nobody asks anybody,
//! and any number of readers reads any range of any tensor, whatever the number of writers was.
//!
//! Files are read and written at positions and never mapped: a mapping of a file on a network file
//! system is slow, and turns a lost server into a signal. This crate must not know what training,
//! a model, a collective or an optimizer is: tensors are names and bytes, the state is opaque JSON.

#![forbid(unsafe_code)]

mod checkpoint;
mod commit;
mod discover;
mod durable;
mod error;
mod hash;
mod layout;
mod manifest;
mod parallel;
mod plan;
mod record;
mod retain;
mod space;
mod stream;
mod tensor;
mod write;

pub use checkpoint::Checkpoint;
pub use commit::{CommitInfo, Committed, abandon, begin, commit};
pub use discover::{
    Candidate, CandidateKind, Found, Rejected, discover, newest_valid, set_aside_newer, verify,
};
pub use error::{CheckpointError, Result};
pub use hash::hash_memory;
pub use layout::{committed_path, temporary_path};
pub use plan::{Piece, Plan};
pub use record::{BLOCK_SIZE, PieceRecord, WriterRecord};
pub use retain::retain;
pub use safetensors::Dtype;
pub use space::{free_space, space_needed};
pub use tensor::{TensorSource, TensorSpec};
pub use write::write_shard;
