//! Whether the kernel's out-of-memory killer was at work in our control group.
//!
//! `SIGKILL` says nothing about who sent it. The control group counts the processes in it that the
//! out-of-memory killer ended, whether the group's own limit or the whole host ran out:
//! `oom_kill` in `memory.events` (cgroup v2) or `memory.oom_control` (v1).

use std::path::PathBuf;

/// The counter of the control group that launcher and workers share, and what it was at the start.
#[derive(Debug)]
pub(crate) struct OutOfMemoryKills {
    file: PathBuf,
    before: u64,
}

impl OutOfMemoryKills {
    /// Finds and reads the counter; `None` where there is none to read.
    pub(crate) fn watch() -> Option<Self> {
        let groups = fs_err::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").ok()?;
        candidates(&groups, &mounts).into_iter().find_map(|file| {
            let before = count(&fs_err::read_to_string(&file).ok()?)?;
            Some(Self { file, before })
        })
    }

    /// Processes of the group killed since the start.
    pub(crate) fn since_start(&self) -> u64 {
        let now = fs_err::read_to_string(&self.file)
            .ok()
            .and_then(|text| count(&text));
        now.map_or(0, |now| now.saturating_sub(self.before))
    }
}

fn count(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Files that may hold the counter: formats in `cgroups(7)` and `proc_pid_mountinfo(5)`.
fn candidates(groups: &str, mounts: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (kind, file) = match controllers {
            "" => ("cgroup2", "memory.events"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("cgroup", "memory.oom_control")
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
                found.push(
                    PathBuf::from(format!("{point}/{}", below.trim_start_matches('/'))).join(file),
                );
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
    fn the_counter_lies_in_our_own_group() {
        let unified = candidates("0::/system.slice/job_7/step_0\n", UNIFIED);
        assert_eq!(
            unified,
            [PathBuf::from(
                "/sys/fs/cgroup/system.slice/job_7/step_0/memory.events"
            )]
        );
        let split = candidates("4:memory:/docker/ab/x\n5:devices:/docker/ab\n0::/\n", SPLIT);
        assert_eq!(
            split,
            [PathBuf::from("/sys/fs/cgroup/memory/x/memory.oom_control")]
        );
        assert!(candidates("4:memory:/elsewhere\n", SPLIT).is_empty());
    }

    #[test]
    fn both_formats_are_read() {
        assert_eq!(
            count("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"),
            Some(2)
        );
        assert_eq!(
            count("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"),
            Some(5)
        );
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), None);
    }
}
