//! Where the control groups that this process is in lie in the file system.

use std::path::PathBuf;

/// The hierarchies that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// cgroup v2.
    Unified,
    /// The memory controller of cgroup v1.
    Memory,
}

/// Our groups, as the kernel tells them.
pub(crate) fn own_groups() -> Vec<(Hierarchy, PathBuf)> {
    let read = |path| fs_err::read_to_string(path).unwrap_or_default();
    directories(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

/// The directories of groups: formats in `cgroups(7)` and `proc_pid_mountinfo(5)`.
pub(crate) fn directories(groups: &str, mounts: &str) -> Vec<(Hierarchy, PathBuf)> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (hierarchy, kind) = match controllers {
            "" => (Hierarchy::Unified, "cgroup2"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (Hierarchy::Memory, "cgroup")
            }
            _ => continue,
        };
        for mount in mounts.lines() {
            let Some((left, right)) = mount.split_once(" - ") else {
                continue;
            };
            let (left, right): (Vec<_>, Vec<_>) =
                (left.split(' ').collect(), right.split(' ').collect());
            let (Some(root), Some(point), Some(&options)) =
                (left.get(3), left.get(4), right.get(2))
            else {
                continue;
            };
            let is_ours = right[0] == kind
                && (kind == "cgroup2" || options.split(',').any(|name| name == "memory"));
            // Inside a container the mount may begin below the root of the hierarchy.
            if let (true, Some(below)) = (is_ours, group.strip_prefix(root.trim_end_matches('/'))) {
                let below = below.trim_start_matches('/');
                found.push((hierarchy, PathBuf::from(point).join(below)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const SPLIT: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        35 31 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
        36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n";

    #[test]
    fn our_own_group_is_found() {
        let unified = directories("0::/system.slice/job_7/step_0\n", UNIFIED);
        let directory = PathBuf::from("/sys/fs/cgroup/system.slice/job_7/step_0");
        assert_eq!(unified, [(Hierarchy::Unified, directory)]);
        let split = directories("4:memory:/docker/ab/x\n5:devices:/docker/ab\n0::/\n", SPLIT);
        let directory = PathBuf::from("/sys/fs/cgroup/memory/x");
        assert_eq!(split, [(Hierarchy::Memory, directory)]);
        assert!(directories("4:memory:/elsewhere\n", SPLIT).is_empty());
    }
}
