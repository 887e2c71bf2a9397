//! The machine: its memory, as far as this process and its children may use it, and its processor.

use std::fs;

/// Bytes: the machine's memory, or what the control groups of this process leave of it. None where
/// the system does not say.
pub fn memory() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_files(&groups)
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
        .chain(machine)
        .min()
}

/// What the processor is called. None where the system does not say.
pub(crate) fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Whether products of matrices have the vectors that ours are made for.
pub(crate) fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The memory that `/proc/meminfo` tells (proc(5)).
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Files that hold the limits of the groups that `/proc/self/cgroup` names and of all above them
/// (cgroups(7)): `0::/path` in version 2, `N:memory:/path` in version 1.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{path}/{name}"));
            match path.rfind('/') {
                Some(end) => path = &path[..end],
                None => break,
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_all_groups_above_are_found() {
        let groups = "4:cpu,memory:/job/7\n3:cpu:/elsewhere\n0::/\n";
        let expected = [
            "/sys/fs/cgroup/memory/job/7/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/job/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(limit_files(groups), expected);
        assert_eq!(total("MemTotal:       2 kB\nMemFree: 1 kB\n"), Some(2048));
    }

    #[test]
    fn this_machine_has_some() {
        assert!(memory().is_none_or(|bytes| bytes > 64 << 20));
    }
}
