//! A small disk for checkpoints, in memory, that can be full.

use std::{
    ffi::CString,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context;
use fs_err as fs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// What takes the room. No checkpoint is called like that.
const BALLAST: &str = "full-disk";

/// A tmpfs, unmounted when it is dropped.
#[derive(Debug)]
pub(super) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many bytes at `path`, an empty directory.
    pub(super) fn mount(path: &Path, bytes: u64) -> io::Result<Self> {
        let size = CString::new(format!("size={bytes},mode=0755")).expect("digits and letters");
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", path, "tmpfs", flags, size.as_c_str())?;
        Ok(Self(path.to_owned()))
    }

    /// Takes all the room that is left. What becomes free later is taken by the next call.
    pub(super) fn fill(&self) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .create(true)
            .append(true)
            .open(self.0.join(BALLAST))?;
        let zeros = vec![0; 1 << 20];
        let mut portion = zeros.len();
        loop {
            match file.write(&zeros[..portion]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A page is the least that is left.
                Err(error) if error.kind() == io::ErrorKind::StorageFull && portion > 1 => {
                    portion /= 2;
                }
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the room back.
    pub(super) fn free(&self) -> io::Result<()> {
        match fs::remove_file(self.0.join(BALLAST)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            freed => freed,
        }
    }

    /// Puts what it holds where it was mounted, so that it stays, and unmounts it.
    pub(super) fn keep(self) -> anyhow::Result<()> {
        self.free()?;
        let path = self.0.clone();
        let copy = path.with_extension("kept");
        copy_directory(&path, &copy).with_context(|| format!("keeping {}", path.display()))?;
        drop(self);
        fs::remove_dir(&path)?;
        fs::rename(&copy, &path)?;
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has a file of it open keeps it a little longer, out of sight.
        let _ = unmount(self.0.as_path(), UnmountFlags::DETACH);
    }
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_until_it_is_freed_and_leaves_what_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoints");
        fs::create_dir(&path).unwrap();
        let Ok(disk) = SmallDisk::mount(&path, 1 << 20) else {
            assert!(std::env::var_os("CI").is_none(), "CI can mount a tmpfs");
            println!("skipped: mounting a small tmpfs needs root");
            return;
        };
        fs::create_dir(path.join("step")).unwrap();
        fs::write(path.join("step/file"), [7; 5000]).unwrap();
        disk.fill().unwrap();
        let refused = fs::write(path.join("more"), [7; 1]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        fs::remove_file(path.join("step/file")).unwrap();
        disk.fill().unwrap();
        assert!(fs::write(path.join("more"), [7; 1]).is_err());
        disk.free().unwrap();
        disk.free().unwrap();
        fs::write(path.join("step/file"), [8; 5000]).unwrap();
        disk.keep().unwrap();
        assert_eq!(fs::read(path.join("step/file")).unwrap(), [8; 5000]);
        assert!(!path.join(BALLAST).exists());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(path.to_str().unwrap()));
    }
}
