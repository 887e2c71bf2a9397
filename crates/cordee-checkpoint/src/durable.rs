//! Small files and directories that survive a loss of power once a call returns.
//!
//! A failed sync is never tried again: the kernel may have dropped the pages and marked them clean,
//! so that a second sync would succeed without them.

use std::io::{self, Read, Write};
use std::path::Path;

use fs_err::File;

use crate::{CheckpointError, Result, free_space};

/// Largest JSON file that is read: a thousand writers of a terabyte need a few MiB.
pub(crate) const MAX_JSON: u64 = 256 << 20;

/// Writes a small file so that it is there whole or not at all, under `path`.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    let written = (|| {
        let mut file = File::create(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs_err::rename(temporary, path)
    })();
    written.map_err(|error| name_lack_of_space(error, path, bytes.len() as u64))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    Ok(File::open(path)?.sync_all()?)
}

/// The whole of a small file; refuses one that cannot be ours.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|error| name_absence(error, path))?;
    let length = file.metadata()?.len();
    if length > MAX_JSON {
        return Err(CheckpointError::damaged(
            path,
            format!("it has {length} bytes, more than any of its kind"),
        ));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(MAX_JSON).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file that should be there and is not is damage; anything else is the system's error.
pub(crate) fn name_absence(error: io::Error, path: &Path) -> CheckpointError {
    if error.kind() == io::ErrorKind::NotFound {
        return CheckpointError::damaged(path, "the file is missing");
    }
    error.into()
}

/// Turns "no space" and "over quota" into an error with the numbers.
pub(crate) fn name_lack_of_space(error: io::Error, path: &Path, needed: u64) -> CheckpointError {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    if !matches!(error.kind(), StorageFull | QuotaExceeded) {
        return error.into();
    }
    CheckpointError::NoSpace {
        path: path.to_owned(),
        needed,
        available: path
            .parent()
            .and_then(|parent| free_space(parent).ok())
            .unwrap_or(0),
    }
}
