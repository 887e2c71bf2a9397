//! Whether the kernel's out-of-memory killer was at work in our control group.
//!
//! `SIGKILL` says nothing about who sent it. The control group counts the processes in it that the
//! out-of-memory killer ended, whether the group's own limit or the whole host ran out:
//! `oom_kill` in `memory.events` (cgroup v2) or `memory.oom_control` (v1).

use std::path::PathBuf;

use crate::hierarchy::{Hierarchy, own_groups};

/// The counter of the control group that launcher and workers share, and what it was at the start.
#[derive(Debug)]
pub(crate) struct OutOfMemoryKills {
    file: PathBuf,
    before: u64,
}

impl OutOfMemoryKills {
    /// Finds and reads the counter; `None` where there is none to read.
    pub(crate) fn watch() -> Option<Self> {
        own_groups().into_iter().find_map(|(hierarchy, directory)| {
            let file = directory.join(match hierarchy {
                Hierarchy::Unified => "memory.events",
                Hierarchy::Memory => "memory.oom_control",
            });
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

#[cfg(test)]
mod tests {
    use super::*;

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
