//! What storage does with a file as checkpoints are written: whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    time::Instant,
};

use rustix::fs::{Advice, fadvise};

/// Bytes that are written and read at once.
const BLOCK: usize = 4 << 20;

/// A file that was written and read back.
#[derive(Clone, Debug, PartialEq)]
pub struct StorageReport {
    /// 10⁹ bytes a second, until the file was durable under its name.
    pub write_gbs: f64,
    /// 10⁹ bytes a second of reading.
    pub read_gbs: f64,
    /// Where the bytes that were read came from, in words.
    pub how_read: String,
    /// Bytes that were not what had been written, and those that were missing.
    pub wrong_bytes: u64,
}

/// Writes a file of `bytes` in a new directory in `dir`, which is made if it is not there: in order,
/// synced, renamed, its directory synced. Asks the system to forget what it knows of it, reads it back
/// and compares every byte. Removes what it made.
///
/// # Errors
///
/// What the system says, with what was being done.
pub fn measure_storage(dir: &Path, bytes: u64) -> io::Result<StorageReport> {
    let doing = |what: &'static str| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let made = !dir.exists();
    fs::create_dir_all(dir).map_err(doing("making the directory"))?;
    let place = dir.join(format!(".cordee-smoke-{}", std::process::id()));
    fs::create_dir(&place).map_err(doing("making a directory"))?;
    let measured = write_and_read(&place, bytes);
    let removed = fs::remove_dir_all(&place).map_err(doing("removing what was written"));
    if made {
        // Only what is empty can be removed.
        let _ = fs::remove_dir(dir);
    }
    let report = measured?;
    removed?;
    Ok(report)
}

fn write_and_read(place: &Path, bytes: u64) -> io::Result<StorageReport> {
    let doing = |what: &'static str| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let (part, whole) = (place.join("part"), place.join("whole"));
    let mut block = vec![0; BLOCK];
    let started = Instant::now();
    let mut file = File::create(&part).map_err(doing("making a file"))?;
    for (index, len) in blocks(bytes) {
        fill(&mut block[..len], index);
        file.write_all(&block[..len]).map_err(doing("writing"))?;
    }
    file.sync_all().map_err(doing("syncing the file"))?;
    fs::rename(&part, &whole).map_err(doing("renaming"))?;
    File::open(place)
        .and_then(|dir| dir.sync_all())
        .map_err(doing("syncing the directory"))?;
    let write_s = started.elapsed().as_secs_f64();

    let forgotten = fadvise(&file, 0, None, Advice::DontNeed).is_ok();
    drop(file);
    let mut found = vec![0; BLOCK];
    let mut wrong_bytes = 0;
    let mut read_s = 0.0;
    let mut file = File::open(&whole).map_err(doing("opening"))?;
    for (index, len) in blocks(bytes) {
        let started = Instant::now();
        let got = read_all(&mut file, &mut found[..len]).map_err(doing("reading"))?;
        read_s += started.elapsed().as_secs_f64();
        fill(&mut block[..len], index);
        let differing = found[..got].iter().zip(&block).filter(|(a, b)| a != b);
        wrong_bytes += (differing.count() + len - got) as u64;
    }
    let how_read = if forgotten {
        "the system was asked to forget it first"
    } else {
        "from the system's memory, perhaps"
    };
    Ok(StorageReport {
        write_gbs: bytes as f64 / write_s / 1e9,
        read_gbs: bytes as f64 / read_s.max(1e-9) / 1e9,
        how_read: how_read.to_owned(),
        wrong_bytes,
    })
}

/// Number and length of each block.
fn blocks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    let count = bytes.div_ceil(BLOCK as u64);
    (0..count).map(move |index| {
        let rest = bytes - index * BLOCK as u64;
        (index, rest.min(BLOCK as u64) as usize)
    })
}

/// Bytes that storage cannot make smaller, and that no other block has (xorshift64*, Vigna 2016).
fn fill(block: &mut [u8], index: u64) {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for bytes in block.chunks_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let number = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        bytes.copy_from_slice(&number[..bytes.len()]);
    }
}

/// As much as there is.
fn read_all(file: &mut File, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match file.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_and_read_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("new/run");
        let bytes = 2 * BLOCK as u64 + 13;
        let report = measure_storage(&place, bytes).unwrap();
        assert_eq!(report.wrong_bytes, 0);
        assert!(report.write_gbs > 0.0 && report.read_gbs > 0.0);
        assert!(!place.exists());
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = measure_storage(&file.join("run"), 10)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("making the directory: "), "{error}");
    }

    #[test]
    fn blocks_differ() {
        let mut blocks = [[0; 24]; 3];
        for (block, index) in blocks.iter_mut().zip(0..) {
            fill(block, index);
        }
        assert!(blocks[0] != blocks[1] && blocks[1] != blocks[2]);
        assert_eq!(super::blocks(BLOCK as u64 + 1).last(), Some((1, 1)));
    }
}
