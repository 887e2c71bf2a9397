//! A file system without room: known before the first byte, named with the numbers, nothing left behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixture::{BLOCK, Tensors, info, spec};
use cordee_checkpoint::{
    CheckpointError, Dtype, Plan, abandon, begin, commit, free_space, newest_valid, space_needed,
    write_shard,
};

/// A small tmpfs of our own, unmounted at the end.
struct SmallDisk {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl SmallDisk {
    /// None, with a word to the log, where mounting is not permitted.
    fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        fs_err::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&path)
            .output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI must test a full disk, and cannot mount a tmpfs"
            );
            println!(
                "SKIPPED: mounting a tmpfs is not permitted here, so a full disk was not tested"
            );
            return None;
        }
        Some(Self {
            path,
            _directory: directory,
        })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.path).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "{} stays mounted",
            self.path.display()
        );
    }
}

fn used(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs_err::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            let metadata = path.metadata().unwrap();
            let below = if metadata.is_dir() { used(&path) } else { 0 };
            metadata.blocks() * 512 + below
        })
        .sum()
}

#[test]
fn a_full_disk_is_named_before_the_first_byte_and_the_old_checkpoint_stays() {
    let Some(disk) = SmallDisk::mount("4m") else {
        return;
    };
    let tensors = Tensors::new(vec![spec("weight", Dtype::F32, &[700, 1024])], 1);
    tensors.save(&disk.path, 1, 1).unwrap();

    let plan = Plan::new(&tensors.specs, 1).unwrap();
    assert!(space_needed(&plan).unwrap() > free_space(&disk.path).unwrap());
    let attempt = begin(&disk.path, 2).unwrap();
    let before = free_space(&disk.path).unwrap();
    let source = |_: &str| -> &[u8] { panic!("bytes are asked for though there is no room") };
    let error = write_shard(&attempt, 0, &plan, &source, None, BLOCK).unwrap_err();
    let CheckpointError::NoSpace {
        path,
        needed,
        available,
    } = &error
    else {
        panic!("{error}");
    };
    assert!(path.ends_with("rank-00000.safetensors"));
    assert_eq!(*needed, 700 * 4096 + 4096);
    assert!(*available <= before && available < needed, "{error}");
    assert!(
        error.to_string().contains("keep fewer checkpoints"),
        "{error}"
    );
    assert_eq!(fs_err::read_dir(&attempt).unwrap().count(), 0);
    abandon(&attempt).unwrap();
    assert_eq!(
        newest_valid(&disk.path).unwrap().checkpoint.unwrap().step(),
        1
    );
}

#[test]
fn a_disk_that_fills_up_between_shard_and_manifest_fails_the_commit() {
    let Some(disk) = SmallDisk::mount("1m") else {
        return;
    };
    let tensors = Tensors::small(1);
    tensors.save(&disk.path, 1, 1).unwrap();
    let (attempt, plan) = tensors.write(&disk.path, 2, 1).unwrap();
    let room = free_space(&disk.path).unwrap();
    fs_err::write(disk.path.join("somebody else's"), vec![1; room as usize]).unwrap();
    let error = commit(&attempt, &info(2, &plan)).unwrap_err();
    let CheckpointError::NoSpace {
        path, available: 0, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert!(path.ends_with("MANIFEST.json"));
    abandon(&attempt).unwrap();
    assert_eq!(
        newest_valid(&disk.path).unwrap().checkpoint.unwrap().step(),
        1
    );
}

#[test]
fn the_space_asked_for_is_enough() {
    for (tensors, writers) in [
        (Tensors::mixed(1), 1),
        (Tensors::mixed(1), 7),
        (Tensors::small(1), 30),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let plan = Plan::new(&tensors.specs, writers).unwrap();
        let attempt = begin(directory.path(), 1).unwrap();
        let source = |name: &str| tensors.bytes[name].as_slice();
        for writer in 0..writers {
            let block_size = cordee_checkpoint::BLOCK_SIZE;
            write_shard(
                &attempt,
                writer,
                &plan,
                &source,
                Some(tensors.hash()),
                block_size,
            )
            .unwrap();
        }
        commit(&attempt, &info(1, &plan)).unwrap();
        let (needed, used) = (space_needed(&plan).unwrap(), used(directory.path()));
        assert!(
            used <= needed,
            "{used} bytes are used, {needed} were asked for"
        );
        // An upper bound that says nothing would stop runs that have room.
        assert!(
            needed <= used + used / 2 + (96 << 10),
            "{needed} bytes are asked for, {used} are used"
        );
    }
    assert!(
        free_space(Path::new("/nowhere"))
            .unwrap_err()
            .to_string()
            .contains("/nowhere")
    );
}
