//! An opened checkpoint: reads any range of any tensor, whatever the number of writers was, and
//! verifies every block that it touches.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fs_err::File;
use fs_err::os::unix::fs::FileExt;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::durable::{name_absence, read_file};
use crate::hash::{checksum, hex_128};
use crate::layout::{MANIFEST, record_name, step_of};
use crate::manifest::Manifest;
use crate::{CheckpointError, Plan, Result, TensorSpec, WriterRecord, parallel};

/// Blocks of which only a part was asked for, kept because the next tensor often lies in the rest.
const KEPT_BLOCKS: usize = 8;

/// Bytes of a tensor that are hashed at a time.
const HASH_WINDOW: u64 = 64 << 20;

/// A committed checkpoint whose manifest is sound. Shared between threads by reference.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
    plan: Plan,
    by_name: HashMap<String, usize>,
    /// First byte in its shard of each piece of the plan.
    offsets: Vec<u64>,
    kept: Mutex<VecDeque<(BlockId, Arc<Vec<u8>>)>>,
}

/// A block of a writer's shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockId {
    writer: usize,
    block: u64,
}

/// A part of one block to be copied into a part of the reader's buffer.
struct BlockRead<'a> {
    id: BlockId,
    /// Bytes within the block.
    range: Range<usize>,
    out: &'a mut [u8],
}

impl Checkpoint {
    /// Reads the manifest and checks that every shard is there with its length; quick. What the shards
    /// hold is verified as it is read, or all at once by [`Checkpoint::verify`].
    pub fn open(path: &Path) -> Result<Self> {
        let manifest_path = path.join(MANIFEST);
        let (manifest, plan) = Manifest::parse(&manifest_path, &read_file(&manifest_path)?)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if step_of(&name).is_some_and(|step| step != manifest.step) {
            return Err(CheckpointError::damaged(
                manifest_path,
                format!("it is of step {}, its directory is {name}", manifest.step),
            ));
        }
        let by_name = (manifest.tensors.iter().enumerate())
            .map(|(index, tensor)| (tensor.name.clone(), index))
            .collect::<HashMap<_, _>>();
        let offsets: HashMap<_, _> = (manifest.writers.iter())
            .flat_map(|record| &record.pieces)
            .map(|piece| ((by_name[&piece.tensor], piece.start), piece.offset))
            .collect();
        let offsets = plan
            .pieces()
            .iter()
            .map(|piece| offsets[&(piece.tensor, piece.start)])
            .collect();
        let checkpoint = Self {
            path: path.to_owned(),
            manifest,
            plan,
            by_name,
            offsets,
            kept: Mutex::default(),
        };
        for record in &checkpoint.manifest.writers {
            checkpoint.open_shard(record)?;
        }
        Ok(checkpoint)
    }

    /// The checkpoint's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The step that it was taken after.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// What the caller of the commit gave.
    pub fn state(&self) -> &Value {
        &self.manifest.state
    }

    /// Every tensor, in the order of the plan.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.manifest.tensors
    }

    /// What each writer wrote.
    pub fn writers(&self) -> &[WriterRecord] {
        &self.manifest.writers
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.manifest
            .writers
            .iter()
            .map(|record| record.length)
            .sum()
    }

    /// Reads a whole tensor into a buffer of its size.
    pub fn read(&self, tensor: &str, out: &mut [u8]) -> Result<()> {
        let spec = self.tensor(tensor)?.1;
        if out.len() as u64 != spec.bytes() {
            return Err(invalid_range(spec, 0, out.len()));
        }
        self.read_range(tensor, 0, out)
    }

    /// Reads as many elements as fill `out`, from element `start` of the flattened tensor on.
    ///
    /// After an error `out` may hold anything.
    pub fn read_range(&self, tensor: &str, start: u64, out: &mut [u8]) -> Result<()> {
        let (index, spec) = self.tensor(tensor)?;
        let size = spec.element_size();
        let len = out.len() as u64 / size;
        let fits = start
            .checked_add(len)
            .is_some_and(|end| end <= spec.elements());
        if !fits || len * size != out.len() as u64 {
            return Err(invalid_range(spec, start, out.len()));
        }
        let mut jobs = Vec::new();
        let mut out = out;
        let pieces = self.plan.pieces();
        let first = pieces
            .partition_point(|piece| (piece.tensor, piece.start + piece.len) <= (index, start));
        for (piece, offset) in pieces[first..].iter().zip(&self.offsets[first..]) {
            if out.is_empty() {
                break;
            }
            // Where the last piece ended is where the range and this piece begin.
            let done = len - out.len() as u64 / size;
            let within = start + done - piece.start;
            let bytes = ((piece.len - within) * size).min(out.len() as u64);
            let (now, later) = out.split_at_mut(bytes as usize);
            out = later;
            self.cut_into_blocks(piece.writer, offset + within * size, now, &mut jobs);
        }
        parallel::for_each(jobs, |_, job| self.read_block(job))
    }

    /// Hash of a tensor's bytes, xxh3-128 as 32 hex digits: the same whatever the number of writers.
    pub fn tensor_hash(&self, tensor: &str) -> Result<String> {
        let spec = self.tensor(tensor)?.1;
        let window = HASH_WINDOW / spec.element_size();
        let mut hasher = Xxh3::new();
        let mut bytes = Vec::new();
        let mut start = 0;
        while start < spec.elements() {
            let len = window.min(spec.elements() - start);
            bytes.resize((len * spec.element_size()) as usize, 0);
            self.read_range(tensor, start, &mut bytes)?;
            hasher.update(&bytes);
            start += len;
        }
        Ok(hex_128(&hasher))
    }

    /// Reads every byte of every file and compares it with what was written.
    pub fn verify(&self) -> Result<()> {
        for record in self.writers() {
            let path = self.path.join(record_name(record.writer));
            if read_file(&path)? != record.encode() {
                return Err(CheckpointError::damaged(
                    path,
                    "it differs from the manifest",
                ));
            }
        }
        let jobs = (self.writers().iter())
            .flat_map(|record| {
                (0..record.blocks()).map(|block| BlockId {
                    writer: record.writer,
                    block,
                })
            })
            .collect();
        parallel::for_each(jobs, |scratch, id| {
            scratch.resize(self.block_range(id).1 as usize, 0);
            self.read_and_verify(id, scratch)
        })
    }

    fn tensor(&self, name: &str) -> Result<(usize, &TensorSpec)> {
        let index = self
            .by_name
            .get(name)
            .ok_or_else(|| CheckpointError::UnknownTensor {
                name: name.to_owned(),
                path: self.path.clone(),
            })?;
        Ok((*index, &self.manifest.tensors[*index]))
    }

    /// The shard of a record, if it has its length.
    fn open_shard(&self, record: &WriterRecord) -> Result<File> {
        let path = self.path.join(&record.file);
        let file = File::open(&path).map_err(|error| name_absence(error, &path))?;
        let length = file.metadata()?.len();
        if length != record.length {
            return Err(CheckpointError::damaged(
                path,
                format!("it has {length} bytes, {} were written", record.length),
            ));
        }
        Ok(file)
    }

    fn block_range(&self, id: BlockId) -> (u64, u64) {
        self.manifest.writers[id.writer].block_range(id.block)
    }

    fn cut_into_blocks<'a>(
        &self,
        writer: usize,
        mut offset: u64,
        mut out: &'a mut [u8],
        jobs: &mut Vec<BlockRead<'a>>,
    ) {
        let block_size = self.manifest.writers[writer].block_size;
        while !out.is_empty() {
            let id = BlockId {
                writer,
                block: offset / block_size,
            };
            let from = (offset % block_size) as usize;
            let len = (block_size as usize - from).min(out.len());
            let (now, later) = out.split_at_mut(len);
            out = later;
            offset += len as u64;
            jobs.push(BlockRead {
                id,
                range: from..from + len,
                out: now,
            });
        }
    }

    fn read_block(&self, job: BlockRead<'_>) -> Result<()> {
        let (_, len) = self.block_range(job.id);
        if job.range == (0..len as usize) {
            return self.read_and_verify(job.id, job.out);
        }
        let block = self.kept_block(job.id)?;
        job.out.copy_from_slice(&block[job.range]);
        Ok(())
    }

    /// A block that is wanted in parts. Two threads may read it at once, which does no harm.
    fn kept_block(&self, id: BlockId) -> Result<Arc<Vec<u8>>> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, block)) = kept().iter().find(|(kept, _)| *kept == id) {
            return Ok(Arc::clone(block));
        }
        // The oldest one's memory is used again: fresh pages cost as much as the copy.
        let oldest = {
            let mut kept = kept();
            if kept.len() < KEPT_BLOCKS {
                None
            } else {
                kept.pop_back()
            }
        };
        let mut block = oldest
            .and_then(|(_, block)| Arc::into_inner(block))
            .unwrap_or_default();
        block.resize(self.block_range(id).1 as usize, 0);
        self.read_and_verify(id, &mut block)?;
        let block = Arc::new(block);
        let mut kept = kept();
        kept.truncate(KEPT_BLOCKS - 1);
        kept.push_front((id, Arc::clone(&block)));
        Ok(block)
    }

    /// Reads a whole block into `out`, which has its length.
    fn read_and_verify(&self, id: BlockId, out: &mut [u8]) -> Result<()> {
        let record = &self.manifest.writers[id.writer];
        let (offset, len) = record.block_range(id.block);
        self.open_shard(record)?.read_exact_at(out, offset)?;
        let found = checksum(out);
        let expected = &record.checksums[id.block as usize];
        if found == *expected {
            return Ok(());
        }
        Err(CheckpointError::BlockDiffers {
            path: self.path.join(&record.file),
            block: id.block,
            offset,
            len,
            expected: expected.clone(),
            found,
        })
    }
}

fn invalid_range(spec: &TensorSpec, start: u64, bytes: usize) -> CheckpointError {
    CheckpointError::InvalidRange {
        name: spec.name.clone(),
        start,
        bytes,
        elements: spec.elements(),
        dtype: spec.dtype,
    }
}
