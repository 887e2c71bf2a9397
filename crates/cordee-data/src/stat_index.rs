//! A memory of content hashes, so that unchanged files need not be read again at each start.
//!
//! It may be lost or stale at any time: an entry is believed only while everything the file system
//! says of the file is as it was, and a file that was touched just before it was hashed is not
//! entered, because a second write within the same clock tick would be invisible.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::DataError;
use crate::text::HashedFile;

const FILE_NAME: &str = "stat-index.json";

/// Coarser than the time stamps of any file system in use, network file systems included.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// What the file system says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stat {
    size: u64,
    inode: u64,
    modified_ns: i64,
    /// Also moves when a tool sets the modification time back.
    changed_ns: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    stat: Stat,
    sha256: [u8; 32],
}

/// Content hashes by absolute path.
#[derive(Debug)]
pub(crate) struct StatIndex {
    file: PathBuf,
    known: BTreeMap<String, Known>,
    changed: bool,
}

impl StatIndex {
    /// The index kept in `cache_dir`; empty if there is none that can be read.
    pub(crate) fn load(cache_dir: &Path) -> Self {
        let file = cache_dir.join(FILE_NAME);
        let known = fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            file,
            known,
            changed: false,
        }
    }

    /// The content hash of a file, read only if it is not known. `reading` is told the size before
    /// that.
    pub(crate) fn hash(
        &mut self,
        path: &Path,
        mut reading: impl FnMut(u64),
    ) -> Result<HashedFile, DataError> {
        let mut file = fs::File::open(path)?;
        let stat = Stat::of(&file)?;
        let absolute = std::path::absolute(path)?;
        let absolute = absolute.to_str();
        if let Some(known) = absolute.and_then(|path| self.known.get(path))
            && known.stat == stat
        {
            return Ok(HashedFile {
                path: path.to_owned(),
                bytes: stat.size,
                sha256: known.sha256,
            });
        }
        reading(stat.size);
        let settled = stat.is_settled();
        let (bytes, sha256) = sha256(&mut file)?;
        if bytes != stat.size || Stat::of(&file)? != stat {
            return Err(DataError::SourceChanged {
                path: path.to_owned(),
            });
        }
        if let Some(absolute) = absolute.filter(|_| settled) {
            self.known
                .insert(absolute.to_owned(), Known { stat, sha256 });
            self.changed = true;
        }
        Ok(HashedFile {
            path: path.to_owned(),
            bytes,
            sha256,
        })
    }

    /// Writes the index if it learned something. A failure is no error: the next start hashes
    /// again.
    pub(crate) fn save(&self) {
        if !self.changed {
            return;
        }
        let temporary = self
            .file
            .with_extension(format!("{}.tmp", crate::cache::unique_suffix()));
        let bytes = serde_json::to_vec(&self.known).expect("numbers and strings are always JSON");
        if fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &self.file))
            .is_err()
        {
            let _ = fs::remove_file(&temporary);
        }
    }
}

impl Stat {
    fn of(file: &fs::File) -> Result<Self, DataError> {
        let metadata = file.metadata()?;
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Ok(Self {
            size: metadata.size(),
            inode: metadata.ino(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn is_settled(&self) -> bool {
        let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else {
            return false;
        };
        let latest = self.modified_ns.max(self.changed_ns);
        latest < now.saturating_sub(SETTLED_AFTER).as_nanos() as i64
    }
}

fn sha256(file: &mut fs::File) -> Result<(u64, [u8; 32]), DataError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((total, hash.finalize().into()));
        }
        hash.update(&buffer[..read]);
        total += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose times lie in the past, as those of a checkout do.
    fn old_file(path: &Path, text: &str, seconds_ago: u64) {
        fs::write(path, text).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds_ago))
            .unwrap();
    }

    fn reads(index: &mut StatIndex, path: &Path) -> (bool, [u8; 32]) {
        let mut read = false;
        let hashed = index.hash(path, |_| read = true).unwrap();
        (read, hashed.sha256)
    }

    #[test]
    fn a_file_is_read_again_when_any_stamp_moves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        old_file(&path, "one", 100);
        // The change time cannot be set: wait until it is old enough to be believed.
        std::thread::sleep(SETTLED_AFTER + Duration::from_millis(100));
        let mut index = StatIndex::load(dir.path());
        let (read, one) = reads(&mut index, &path);
        assert!(read);
        index.save();
        let mut index = StatIndex::load(dir.path());
        assert_eq!(reads(&mut index, &path), (false, one));
        // Same size and modification time: only the change time tells.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "two").unwrap();
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        let (read, two) = reads(&mut index, &path);
        assert!(read);
        assert_ne!(one, two);
    }

    #[test]
    fn a_fresh_file_and_a_broken_index_are_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "one").unwrap();
        fs::write(dir.path().join(FILE_NAME), "{ not json").unwrap();
        let mut index = StatIndex::load(dir.path());
        assert!(reads(&mut index, &path).0);
        assert!(reads(&mut index, &path).0);
    }
}
