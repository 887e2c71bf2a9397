//! Lines of records, as far as they can be read.

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use fs_err as fs;
use serde::de::DeserializeOwned;

/// Bytes that hold a step's record with room to spare.
const STEP_BYTES: u64 = 1024;

/// Every line of a file that is a record. Those that a crash tore and those of other versions are left
/// out.
pub(super) fn lines<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    parsed(&fs::read(path).unwrap_or_default())
}

/// The last `count` records of a file, which may be long, or fewer.
pub(super) fn last_lines<T: DeserializeOwned>(path: &Path, count: usize) -> Vec<T> {
    let mut records = parsed(&tail(path, count as u64 * STEP_BYTES).unwrap_or_default());
    records.split_off(records.len().saturating_sub(count))
}

/// The end of a file; its first line may be half of one, which is no record.
fn tail(path: &Path, bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

fn parsed<T: DeserializeOwned>(text: &[u8]) -> Vec<T> {
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}
