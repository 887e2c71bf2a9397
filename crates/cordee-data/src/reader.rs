//! Tokens at any position of a split, by positional reads.
//!
//! Never mmap: on a network file system it reads page by page, and a file that shrinks kills the
//! process.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::DataError;
use crate::manifest::ShardEntry;
use crate::shard::{HEADER_BYTES, TokenWidth};

/// The shards of one split as one row of tokens. Holds a file descriptor per shard; reads from
/// several threads at once are fine.
#[derive(Debug)]
pub(crate) struct TokenReader {
    shards: Vec<OpenShard>,
    width: TokenWidth,
    vocab_size: usize,
}

#[derive(Debug)]
struct OpenShard {
    path: PathBuf,
    file: fs::File,
    /// Position of its first token in the split.
    start: u64,
    tokens: u64,
}

impl TokenReader {
    /// Opens shards and checks their headers.
    pub(crate) fn open(
        dir: &Path,
        shards: &[ShardEntry],
        width: TokenWidth,
        vocab_size: usize,
    ) -> Result<Self, DataError> {
        let mut start = 0;
        let mut open = Vec::with_capacity(shards.len());
        for shard in shards {
            let path = dir.join(&shard.file);
            let file = fs::File::open(&path)?;
            let shard = OpenShard {
                path,
                file,
                start,
                tokens: shard.tokens,
            };
            let mut header = [0; HEADER_BYTES as usize];
            shard.read_bytes(0, &mut header)?;
            if header != width.header(shard.tokens) {
                let reason = format!(
                    "{} has another header than it was written with",
                    shard.path.display()
                );
                return Err(DataError::Damaged {
                    entry: dir.to_owned(),
                    reason,
                });
            }
            start += shard.tokens;
            open.push(shard);
        }
        Ok(Self {
            shards: open,
            width,
            vocab_size,
        })
    }

    /// Fills `tokens` from position `start` on, across shards. The range must lie within the split.
    pub(crate) fn read(&self, start: u64, tokens: &mut [u32]) -> Result<(), DataError> {
        let mut position = start;
        let mut rest = tokens;
        let mut bytes = Vec::new();
        while !rest.is_empty() {
            let index = self
                .shards
                .partition_point(|shard| shard.start + shard.tokens <= position);
            let shard = &self.shards[index];
            let within = position - shard.start;
            let count = rest.len().min((shard.tokens - within) as usize);
            bytes.resize(count * self.width.bytes() as usize, 0);
            shard.read_bytes(HEADER_BYTES + within * self.width.bytes(), &mut bytes)?;
            let (now, later) = rest.split_at_mut(count);
            self.decode(&bytes, now);
            self.check(shard, within, now)?;
            position += count as u64;
            rest = later;
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8], tokens: &mut [u32]) {
        match self.width {
            TokenWidth::Two => {
                for (token, &pair) in tokens.iter_mut().zip(bytes.as_chunks().0) {
                    *token = u32::from(u16::from_le_bytes(pair));
                }
            }
            TokenWidth::Four => {
                for (token, &four) in tokens.iter_mut().zip(bytes.as_chunks().0) {
                    *token = u32::from_le_bytes(four);
                }
            }
        }
    }

    /// An id outside the vocabulary would read past the embedding's end.
    fn check(&self, shard: &OpenShard, within: u64, tokens: &[u32]) -> Result<(), DataError> {
        match tokens
            .iter()
            .position(|&token| token as usize >= self.vocab_size)
        {
            None => Ok(()),
            Some(at) => Err(DataError::TokenOutOfRange {
                path: shard.path.clone(),
                token: tokens[at],
                position: within + at as u64,
                vocab_size: self.vocab_size,
            }),
        }
    }
}

impl OpenShard {
    fn read_bytes(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DataError> {
        self.file
            .file()
            .read_exact_at(bytes, offset)
            .map_err(|source| DataError::Read {
                path: self.path.clone(),
                offset,
                bytes: bytes.len(),
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shard::ShardWriter;

    fn written(dir: &Path, width: TokenWidth, limit: u64, tokens: &[u32]) -> Vec<ShardEntry> {
        let mut writer = ShardWriter::create(dir, "t", width, limit).unwrap();
        for piece in tokens.chunks(7) {
            writer.push(piece).unwrap();
        }
        writer.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_range_reads_what_was_written(
            count in 1usize..60, limit in 1u64..40, wide: bool, start in 0usize..60, length in 0usize..60,
        ) {
            let (width, factor) = if wide { (TokenWidth::Four, 70_001) } else { (TokenWidth::Two, 1009) };
            let tokens: Vec<u32> = (0..count as u32).map(|n| n * factor).collect();
            let dir = tempfile::tempdir().unwrap();
            let shards = written(dir.path(), width, limit, &tokens);
            prop_assert_eq!(shards.len() as u64, (count as u64).div_ceil(limit));
            let reader = TokenReader::open(dir.path(), &shards, width, 60 * factor as usize).unwrap();
            let start = start.min(count);
            let mut read = vec![0; length.min(count - start)];
            reader.read(start as u64, &mut read).unwrap();
            prop_assert_eq!(&read, &tokens[start..start + read.len()]);
        }
    }

    #[test]
    fn numbers_that_are_no_tokens_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let shards = written(dir.path(), TokenWidth::Two, 4, &[1, 2, 3, 4, 5, 900]);
        let reader = TokenReader::open(dir.path(), &shards, TokenWidth::Two, 100).unwrap();
        let error = reader.read(0, &mut [0; 6]).unwrap_err().to_string();
        assert!(
            error
                .ends_with("t-00001.bin: token 900 at position 1 is outside the vocabulary of 100"),
            "{error}"
        );
    }

    #[test]
    fn a_shard_cut_off_or_swapped_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let shards = written(dir.path(), TokenWidth::Two, 4, &[1, 2, 3, 4, 5, 6]);
        let reader = TokenReader::open(dir.path(), &shards, TokenWidth::Two, 100).unwrap();
        let path = dir.path().join(&shards[1].file);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(HEADER_BYTES + 3)
            .unwrap();
        assert!(reader.read(0, &mut [0; 5]).is_ok());
        let error = reader.read(0, &mut [0; 6]).unwrap_err().to_string();
        assert!(
            error.contains("t-00001.bin: reading 4 bytes at offset 1024"),
            "{error}"
        );
        fs::copy(dir.path().join(&shards[0].file), &path).unwrap();
        let error = TokenReader::open(dir.path(), &shards, TokenWidth::Two, 100).unwrap_err();
        assert!(
            error.to_string().contains("t-00001.bin has another header"),
            "{error}"
        );
    }
}
