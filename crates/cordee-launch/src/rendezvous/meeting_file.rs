//! The file in which the coordinator leaves where it is and what proves that one belongs to the job.
//!
//! It is in a directory that all nodes see. Whoever can read it can join the job, so nobody but its owner
//! can; whoever could have written it could have made up the job, so nobody but this user has.

use std::{
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cordee_protocol::Secret;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::RendezvousError;

/// No meeting file is longer.
const MOST_BYTES: u64 = 1 << 20;

/// Where the coordinator of a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeetingFile {
    /// Which job.
    pub job: String,
    /// What its processes know and nobody else.
    pub secret: Secret,
    /// Addresses of the coordinator, as `host:port`; any may be out of another node's reach.
    pub addresses: Vec<String>,
    /// When the coordinator was started, in seconds since 1970.
    pub started: u64,
}

impl MeetingFile {
    /// Writes it, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), RendezvousError> {
        self.put(path)
            .map_err(|source| failed("write", path, source))
    }

    fn put(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        // Of a process with this number that was killed.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let text = serde_json::to_vec_pretty(self)?;
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
            return written;
        }
        // Not every file system lets a directory be synced; the file is read at once or never.
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        let _ = fs::File::open(directory.unwrap_or(Path::new("."))).map(|it| it.sync_all());
        Ok(())
    }

    /// Reads it; `None` while there is none that can be understood.
    pub fn read(path: &Path) -> Result<Option<Self>, RendezvousError> {
        let open = std::fs::OpenOptions::new()
            .read(true)
            // A pipe would be waited for, and a link may lead to what is not ours.
            .custom_flags(
                (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW).bits() as i32,
            )
            .open(path);
        let file = match open {
            // Another node may have replaced it on a network file system.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.kind() == io::ErrorKind::StaleNetworkFileHandle =>
            {
                return Ok(None);
            }
            opened => opened.map_err(|source| failed("read", path, source))?,
        };
        let metadata = file
            .metadata()
            .map_err(|source| failed("read", path, source))?;
        let unsafe_file = |why| {
            Err(RendezvousError::UnsafeMeetingFile {
                path: path.to_owned(),
                why,
            })
        };
        let user = rustix::process::geteuid().as_raw();
        if !metadata.is_file() {
            return unsafe_file("it is no regular file".to_owned());
        }
        if metadata.uid() != user {
            let owner = metadata.uid();
            return unsafe_file(format!(
                "it belongs to user {owner}, and this process runs as user {user}"
            ));
        }
        if metadata.mode() & 0o077 != 0 {
            return unsafe_file(format!(
                "its mode is {:03o}, so that others can read the job's secret or change it (600 is wanted)",
                metadata.mode() & 0o777
            ));
        }
        let mut text = Vec::new();
        file.take(MOST_BYTES)
            .read_to_end(&mut text)
            .map_err(|source| failed("read", path, source))?;
        Ok(serde_json::from_slice(&text).ok())
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> RendezvousError {
    RendezvousError::MeetingFile {
        what,
        path: path.to_owned(),
        source,
    }
}

/// A meeting file that was written here, and is removed with this unless it is another's by then.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) path: PathBuf,
    pub(super) file: MeetingFile,
}

impl Drop for Written {
    fn drop(&mut self) {
        if MeetingFile::read(&self.path).is_ok_and(|file| file.as_ref() == Some(&self.file)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn of(job: &str) -> MeetingFile {
        MeetingFile {
            job: job.to_owned(),
            secret: Secret::random().unwrap(),
            addresses: vec!["127.0.0.1:9".to_owned()],
            started: 7,
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meeting.json");
        assert_eq!(MeetingFile::read(&path).unwrap(), None);
        let file = of("a");
        file.write(&path).unwrap();
        assert_eq!(MeetingFile::read(&path).unwrap(), Some(file));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
        fs::write(&path, "{").unwrap();
        assert_eq!(MeetingFile::read(&path).unwrap(), None);
    }

    #[test]
    fn what_others_can_read_is_refused_with_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meeting.json");
        of("a").write(&path).unwrap();
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = MeetingFile::read(&path).unwrap_err().to_string();
        assert!(
            error.contains("its mode is 644, so that others can read"),
            "{error}"
        );
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(MeetingFile::read(&link).is_err());
        let error = MeetingFile::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }

    #[test]
    fn only_ones_own_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meeting.json");
        let (first, second) = (of("a"), of("a"));
        let written = |file: &MeetingFile| {
            file.write(&path).unwrap();
            Written {
                path: path.clone(),
                file: file.clone(),
            }
        };
        let old = written(&first);
        let new = written(&second);
        drop(old);
        assert_eq!(MeetingFile::read(&path).unwrap(), Some(second));
        drop(new);
        assert!(!path.exists());
    }
}
