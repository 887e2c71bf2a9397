//! Cache entries: directories named by content, complete or absent, whoever races or dies.
//!
//! An entry is written under another name and renamed when all of it is on disk. A lock keeps two
//! processes from doing the same work; where the file system has no locks both work and the second
//! rename gives way.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;

use crate::{Corpus, DataError};

/// Entries up to so many bytes are held to their checksums at each use: little beside the training
/// that so much text is for.
const ALWAYS_VERIFIED: u64 = 1 << 30;

/// Hex digits of the fingerprint in a directory's name: 128 bits.
const NAME_DIGITS: usize = 32;

/// Where the corpus of one fingerprint is or will be.
pub(crate) struct CacheEntry {
    cache_dir: PathBuf,
    name: String,
    fingerprint: String,
}

/// What is found there.
pub(crate) enum Lookup {
    Absent,
    Complete(Corpus),
    Damaged(String),
}

/// A directory being filled; removed again unless it is committed.
pub(crate) struct Staging {
    path: PathBuf,
}

impl CacheEntry {
    pub(crate) fn new(cache_dir: &Path, fingerprint: &str) -> Self {
        Self {
            cache_dir: cache_dir.to_owned(),
            name: fingerprint[..NAME_DIGITS].to_owned(),
            fingerprint: fingerprint.to_owned(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.cache_dir.join(&self.name)
    }

    /// Opens the entry if it is there and sound; reads all of it if `verify`, or if that costs next to
    /// nothing.
    pub(crate) fn lookup(&self, verify: bool) -> Result<Lookup, DataError> {
        let path = self.path();
        if !path.try_exists()? {
            return Ok(Lookup::Absent);
        }
        let sound = Corpus::open(&path).and_then(|corpus| {
            if verify || corpus.bytes() <= ALWAYS_VERIFIED {
                corpus.verify()?;
            }
            Ok(corpus)
        });
        Ok(match sound {
            Ok(corpus) if corpus.fingerprint() == self.fingerprint => Lookup::Complete(corpus),
            Ok(_) => Lookup::Damaged("it was made from something else".to_owned()),
            Err(DataError::Damaged { reason, .. }) => Lookup::Damaged(reason),
            Err(error) => return Err(error),
        })
    }

    /// Waits until no other process fills this entry; `waiting` is called if that takes time. The
    /// lock is held as long as the file is. `None` where the file system cannot lock.
    pub(crate) fn lock(&self, waiting: impl FnOnce()) -> Result<Option<fs::File>, DataError> {
        let file = fs::File::create(self.cache_dir.join(format!("{}.lock", self.name)))?;
        match file.file().try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => {
                waiting();
                Ok(file.file().lock().is_ok().then_some(file))
            }
            Err(std::fs::TryLockError::Error(_)) => Ok(None),
        }
    }

    /// Removes what dead processes left of this entry; only for the holder of the lock.
    pub(crate) fn sweep(&self) -> Result<(), DataError> {
        let prefix = self.staging_prefix();
        for entry in fs::read_dir(&self.cache_dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Moves a damaged entry out of the way, to be looked at; only the last one is kept.
    pub(crate) fn set_aside(&self) -> Result<PathBuf, DataError> {
        let aside = self.cache_dir.join(format!("{}.damaged", self.name));
        if aside.try_exists()? {
            fs::remove_dir_all(&aside)?;
        }
        fs::rename(self.path(), &aside)?;
        Ok(aside)
    }

    /// A new directory to fill.
    pub(crate) fn stage(&self) -> Result<Staging, DataError> {
        let path = self
            .cache_dir
            .join(format!("{}{}", self.staging_prefix(), unique_suffix()));
        fs::create_dir(&path)?;
        Ok(Staging { path })
    }

    /// Gives a filled directory its name; its files must have been synced. If another process was
    /// faster, theirs is used.
    pub(crate) fn commit(&self, staging: &Staging) -> Result<Corpus, DataError> {
        sync_dir(&staging.path)?;
        if let Err(error) = fs::rename(&staging.path, self.path()) {
            return match self.lookup(false)? {
                Lookup::Complete(corpus) => Ok(corpus),
                Lookup::Absent | Lookup::Damaged(_) => Err(error.into()),
            };
        }
        sync_dir(&self.cache_dir)?;
        Corpus::open(&self.path())
    }

    fn staging_prefix(&self) -> String {
        format!(".tmp-{}-", self.name)
    }
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Gone already if it was committed.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Text that no other thread, process or machine puts into a file name at the same time.
pub(crate) fn unique_suffix() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_nanos());
    format!("{}-{nanoseconds:x}-{count}", std::process::id())
}

fn sync_dir(path: &Path) -> Result<(), DataError> {
    Ok(fs::File::open(path)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, PrepareSpec, SourceSpec, Vocabulary, prepare};

    /// A corpus in a cache, and a directory staged beside it with the same files.
    fn committed_and_staged(dir: &Path) -> (Corpus, CacheEntry, Staging) {
        let path = dir.join("text.txt");
        fs::write(&path, "some text to prepare, and some more of it").unwrap();
        let spec = PrepareSpec {
            sources: vec![SourceSpec {
                name: "a".to_owned(),
                path,
                format: Format::Text { separator: None },
            }],
            vocabulary: Vocabulary::Train(300),
            validation_fraction: 0.0,
            seq_len: 8,
            verify: false,
        };
        let corpus = prepare(&spec, dir, &mut |_| {}).unwrap();
        let entry = CacheEntry::new(dir, corpus.fingerprint());
        let staging = entry.stage().unwrap();
        for file in fs::read_dir(corpus.entry()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), staging.path().join(file.file_name())).unwrap();
        }
        (corpus, entry, staging)
    }

    #[test]
    fn where_nothing_locks_the_second_commit_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, entry, staging) = committed_and_staged(dir.path());
        let used = entry.commit(&staging).unwrap();
        assert_eq!(used.entry(), corpus.entry());
        let staged = staging.path().to_owned();
        drop(staging);
        assert!(!staged.exists());
        used.verify().unwrap();
    }

    #[test]
    fn a_commit_never_replaces_what_it_cannot_read() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, entry, staging) = committed_and_staged(dir.path());
        fs::write(corpus.tokenizer_path(), "cut").unwrap();
        assert!(entry.commit(&staging).is_err());
        assert_eq!(fs::read_to_string(corpus.tokenizer_path()).unwrap(), "cut");
    }

    #[test]
    fn a_held_lock_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let entry = CacheEntry::new(dir.path(), &"a".repeat(64));
        let held = entry
            .lock(|| panic!("nobody else is here"))
            .unwrap()
            .unwrap();
        std::thread::scope(|scope| {
            let (waiting, is_waiting) = std::sync::mpsc::channel();
            let entry = &entry;
            let second = scope.spawn(move || entry.lock(|| waiting.send(()).unwrap()).unwrap());
            is_waiting.recv().unwrap();
            drop(held);
            assert!(second.join().unwrap().is_some());
        });
    }
}
