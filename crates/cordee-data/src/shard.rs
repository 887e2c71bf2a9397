//! Token shards: raw little-endian ids behind a header that llm.c reads too, and a sidecar of
//! document ends.
//!
//! Header (1,024 bytes): 256 little-endian `i32`: magic, version, number of tokens, zeros. Magic
//! and version are llm.c's, 20240520 and 1 for `u16` ids, 20240801 and 7 for `u32` ids (llm.c,
//! `dev/data/data_common.py`). The number of tokens is an `i32`, so a shard holds at most 2^31 - 1
//! and longer splits roll over. The sidecar holds one little-endian `u64` per document: the
//! position after its end-of-text token, counted from the start of the split.

use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::DataError;
use crate::manifest::ShardEntry;

/// Bytes before the first token.
pub(crate) const HEADER_BYTES: u64 = 1024;

/// The most tokens a shard holds.
pub(crate) const MOST_TOKENS: u64 = i32::MAX as u64;

/// Bytes per token id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenWidth {
    /// `u16`.
    Two,
    /// `u32`.
    Four,
}

impl TokenWidth {
    /// The narrowest that holds every id of a vocabulary.
    pub(crate) fn of_vocabulary(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 {
            Self::Two
        } else {
            Self::Four
        }
    }

    /// Bytes per token.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// The header of a shard with so many tokens.
    pub(crate) fn header(self, tokens: u64) -> [u8; HEADER_BYTES as usize] {
        let (magic, version) = match self {
            Self::Two => (20_240_520_i32, 1_i32),
            Self::Four => (20_240_801, 7),
        };
        let tokens = i32::try_from(tokens).expect("a shard rolls over before 2^31 tokens");
        let mut header = [0; HEADER_BYTES as usize];
        for (field, value) in header.chunks_exact_mut(4).zip([magic, version, tokens]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        header
    }
}

/// Writes the shards of one split and their sidecar.
pub(crate) struct ShardWriter {
    dir: PathBuf,
    stem: String,
    width: TokenWidth,
    limit: u64,
    shards: Vec<ShardEntry>,
    current: Option<BufWriter<fs::File>>,
    ends: BufWriter<fs::File>,
    tokens: u64,
}

impl ShardWriter {
    /// Files `<stem>-00000.bin`, ... and `<stem>.ends` in `dir`; at most `limit` tokens a shard.
    pub(crate) fn create(
        dir: &Path,
        stem: &str,
        width: TokenWidth,
        limit: u64,
    ) -> Result<Self, DataError> {
        assert!(
            (1..=MOST_TOKENS).contains(&limit),
            "a shard's number of tokens is an i32"
        );
        let ends = fs::File::create(dir.join(ends_file(stem)))?;
        Ok(Self {
            dir: dir.to_owned(),
            stem: stem.to_owned(),
            width,
            limit,
            shards: Vec::new(),
            current: None,
            ends: BufWriter::new(ends),
            tokens: 0,
        })
    }

    /// Appends tokens of the current document.
    pub(crate) fn push(&mut self, mut tokens: &[u32]) -> Result<(), DataError> {
        while !tokens.is_empty() {
            let room = match (&self.current, self.shards.last()) {
                (Some(_), Some(shard)) => self.limit - shard.tokens,
                _ => 0,
            };
            if room == 0 {
                self.roll_over()?;
                continue;
            }
            let (now, later) = tokens.split_at(tokens.len().min(room as usize));
            self.write(now)?;
            tokens = later;
        }
        Ok(())
    }

    /// Ends the current document here.
    pub(crate) fn end_document(&mut self) -> Result<(), DataError> {
        Ok(self.ends.write_all(&self.tokens.to_le_bytes())?)
    }

    /// Completes and syncs all files; what was written, in order.
    pub(crate) fn finish(mut self) -> Result<Vec<ShardEntry>, DataError> {
        self.complete_shard()?;
        sync(self.ends)?;
        Ok(self.shards)
    }

    fn write(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        let (Some(file), Some(shard)) = (&mut self.current, self.shards.last_mut()) else {
            unreachable!("push opened a shard");
        };
        match self.width {
            TokenWidth::Two => {
                for &token in tokens {
                    let token =
                        u16::try_from(token).expect("the width was chosen for the vocabulary");
                    file.write_all(&token.to_le_bytes())?;
                }
            }
            TokenWidth::Four => {
                for &token in tokens {
                    file.write_all(&token.to_le_bytes())?;
                }
            }
        }
        shard.tokens += tokens.len() as u64;
        self.tokens += tokens.len() as u64;
        Ok(())
    }

    fn roll_over(&mut self) -> Result<(), DataError> {
        self.complete_shard()?;
        let name = format!("{}-{:05}.bin", self.stem, self.shards.len());
        let mut file = BufWriter::with_capacity(1 << 18, fs::File::create(self.dir.join(&name))?);
        // Holds the place: the number of tokens is known at the end.
        file.write_all(&[0; HEADER_BYTES as usize])?;
        self.shards.push(ShardEntry {
            file: name,
            tokens: 0,
        });
        self.current = Some(file);
        Ok(())
    }

    fn complete_shard(&mut self) -> Result<(), DataError> {
        if let (Some(mut file), Some(shard)) = (self.current.take(), self.shards.last()) {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&self.width.header(shard.tokens))?;
            sync(file)?;
        }
        Ok(())
    }
}

/// The sidecar of a split.
pub(crate) fn ends_file(stem: &str) -> String {
    format!("{stem}.ends")
}

fn sync(file: BufWriter<fs::File>) -> Result<(), DataError> {
    let file = file
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_llm_c() {
        let header = TokenWidth::Two.header(3);
        let fields: Vec<i32> = header
            .chunks_exact(4)
            .map(|field| i32::from_le_bytes(field.try_into().unwrap()))
            .collect();
        assert_eq!(fields.len(), 256);
        assert_eq!(fields[..3], [20_240_520, 1, 3]);
        assert!(fields[3..].iter().all(|&field| field == 0));
        assert_eq!(
            TokenWidth::Four.header(0x0102)[..12],
            [161, 217, 52, 1, 7, 0, 0, 0, 2, 1, 0, 0]
        );
    }

    #[test]
    fn files_hold_what_llm_c_expects() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            ShardWriter::create(dir.path(), "s", TokenWidth::Two, MOST_TOKENS).unwrap();
        writer.push(&[1, 65_535]).unwrap();
        writer.end_document().unwrap();
        writer.push(&[515]).unwrap();
        writer.end_document().unwrap();
        let shards = writer.finish().unwrap();
        assert_eq!(shards.len(), 1);
        let bytes = fs::read(dir.path().join(&shards[0].file)).unwrap();
        // llm.c demands exactly this size.
        assert_eq!(bytes.len() as u64, HEADER_BYTES + 2 * 3);
        assert_eq!(bytes[..1024], TokenWidth::Two.header(3));
        assert_eq!(bytes[1024..], [1, 0, 255, 255, 3, 2]);
        let ends = fs::read(dir.path().join("s.ends")).unwrap();
        assert_eq!(ends, [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn width_follows_the_vocabulary() {
        assert_eq!(TokenWidth::of_vocabulary(65_536), TokenWidth::Two);
        assert_eq!(TokenWidth::of_vocabulary(65_537), TokenWidth::Four);
    }
}
