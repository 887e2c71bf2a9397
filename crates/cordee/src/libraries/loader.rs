//! Where the system's loader looks on its own: its cache, and the directories built into it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Directories that loaders have built in; distributions differ.
#[cfg(not(target_arch = "aarch64"))]
const BUILT_IN: [&str; 6] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "lib64",
    "usr/lib64",
    "lib",
    "usr/lib",
];
#[cfg(target_arch = "aarch64")]
const BUILT_IN: [&str; 6] = [
    "lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib64",
    "usr/lib64",
    "lib",
    "usr/lib",
];

/// What the cache begins with (glibc, `sysdeps/generic/dl-cache.h`).
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Bytes before the entries, and of one: flags, name, path, version (32 bits each), and 64 bits more.
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// The directories under `root`, those of the cache first.
pub(super) fn directories(root: &Path) -> Vec<PathBuf> {
    let cache = fs_err::read(root.join("etc/ld.so.cache")).unwrap_or_default();
    let mut cached = BTreeSet::new();
    for path in paths(&cache).unwrap_or_default() {
        let path = Path::new(path.trim_start_matches('/'));
        if let Some(directory) = path.parent() {
            cached.insert(root.join(directory));
        }
    }
    let built_in = BUILT_IN.iter().map(|directory| root.join(directory));
    cached.into_iter().chain(built_in).collect()
}

/// The paths in a cache; none of a cache that is not understood.
fn paths(cache: &[u8]) -> Option<Vec<&str>> {
    // Older systems have one of an older form before it.
    let start = cache
        .windows(MAGIC.len())
        .position(|window| window == MAGIC)?;
    let cache = &cache[start..];
    let number = |at: usize| {
        let bytes = cache.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let count = number(MAGIC.len())?.min(cache.len() / ENTRY);
    let path = |entry: usize| {
        let text = cache.get(number(HEADER + entry * ENTRY + 8)?..)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&text[..end]).ok()
    };
    Some((0..count).filter_map(path).collect())
}

/// A cache that names these files, as `ldconfig` writes it.
#[cfg(test)]
pub(super) fn cache_of(paths: &[&str]) -> Vec<u8> {
    let mut strings = Vec::new();
    let mut entries = Vec::new();
    let text = HEADER + paths.len() * ENTRY;
    for path in paths {
        let offset = (text + strings.len()) as u32;
        for field in [0x303, offset, offset, 0, 0, 0] {
            entries.extend(u32::to_le_bytes(field));
        }
        strings.extend(path.as_bytes());
        strings.push(0);
    }
    let mut cache = MAGIC.to_vec();
    cache.extend((paths.len() as u32).to_le_bytes());
    cache.extend((strings.len() as u32).to_le_bytes());
    cache.resize(HEADER, 0);
    [cache, entries, strings].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_tells_its_paths_and_a_damaged_one_none() {
        let files = ["/opt/a/liba.so.1", "/usr/lib/libb.so.2"];
        let cache = cache_of(&files);
        assert_eq!(paths(&cache).unwrap(), files);
        assert_eq!(
            paths(&[b"ld.so-1.7.0 older", &*cache].concat()).unwrap(),
            files
        );
        assert!(paths(b"no cache").is_none());
        for end in 0..cache.len() {
            // Whatever is missing, nothing panics.
            let _ = paths(&cache[..end]);
        }
    }
}
