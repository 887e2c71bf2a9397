//! What the kernel tells of a process in `/proc`.

use std::fmt;

use cordee_protocol::names;

/// Part of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    /// `R`, `S`, `D`, `T`, `t`, `Z` and so on.
    pub(crate) state: char,
    pub(crate) group: u32,
    pub(crate) session: u32,
    /// When it started, in clock ticks since the machine did; with the pid it names the process for good.
    pub(crate) start: u64,
}

impl Stat {
    /// Reads it; `None` where there is no such process.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The same of this process, by the number that `/proc` has for it.
    pub(crate) fn of_self() -> Option<Self> {
        Self::parse(&fs_err::read_to_string("/proc/self/stat").ok()?)
    }

    /// The format is in `proc_pid_stat(5)`. The name in parentheses may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let pid = text.split(' ').next()?.parse().ok()?;
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }

    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Names one launcher process for good, in the machine's control groups and in what its workers start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Process ids mean something in their namespace alone.
    pub(crate) namespace: u64,
    pub(crate) pid: u32,
    pub(crate) start: u64,
}

impl Identity {
    /// This process; `None` where `/proc` is not there, or is that of other processes.
    pub(crate) fn own() -> Option<Self> {
        let stat = Stat::of_self().filter(|stat| stat.pid == std::process::id())?;
        let link = fs_err::read_link("/proc/self/ns/pid").ok()?;
        let namespace = link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?;
        Some(Self {
            namespace: namespace.parse().ok()?,
            pid: stat.pid,
            start: stat.start,
        })
    }

    /// Reads what [`Self`] displays.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('-').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let identity = Self {
            namespace: next()?,
            pid: u32::try_from(next()?).ok()?,
            start: next()?,
        };
        numbers.next().is_none().then_some(identity)
    }

    /// The value of [`names::LAUNCHER`] for a rank.
    pub(crate) fn mark(&self, rank: usize) -> String {
        format!("{self}/{rank}")
    }

    /// Whether that process is known to be gone; of another namespace nothing is known.
    pub(crate) fn is_gone(&self, own: &Self) -> bool {
        self.namespace == own.namespace
            && Stat::of(self.pid).is_none_or(|stat| stat.start != self.start || stat.is_zombie())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.namespace, self.pid, self.start)
    }
}

/// The rank of `launcher` that started a process, or from which whoever started it came: what a worker
/// starts has its environment.
pub(crate) fn rank_by_mark(pid: u32, launcher: &Identity) -> Option<usize> {
    let environment = fs_err::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{}={launcher}/", names::LAUNCHER);
    environment
        .split(|&byte| byte == 0)
        .find_map(|variable| variable.strip_prefix(prefix.as_bytes()))
        .and_then(|rank| std::str::from_utf8(rank).ok()?.parse().ok())
}

/// Children of this process, adopted ones too; `None` where the kernel does not tell
/// (`CONFIG_PROC_CHILDREN`).
pub(crate) fn children() -> Option<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs_err::read_dir("/proc/self/task").ok()?.flatten() {
        // A thread that ended has passed its children on to another.
        match fs_err::read_to_string(task.path().join("children")) {
            Ok(pids) => children.extend(
                pids.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            ),
            Err(_) if task.path().exists() => return None,
            Err(_) => {}
        }
    }
    Some(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "77 (a) Z (b c) T 1 70 60 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 9876 100 200";
        let stat = Stat {
            pid: 77,
            state: 'T',
            group: 70,
            session: 60,
            start: 9876,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("77 (a)"), None);
    }

    #[test]
    fn an_identity_outlives_its_process_but_not_its_number() {
        let own = Identity::own().unwrap();
        assert_eq!(Identity::parse(&own.to_string()), Some(own));
        assert!(!own.is_gone(&own));
        let earlier = Identity {
            start: own.start - 1,
            ..own
        };
        assert!(earlier.is_gone(&own), "the number went to another process");
        let elsewhere = Identity {
            namespace: own.namespace + 1,
            ..earlier
        };
        assert!(!elsewhere.is_gone(&own), "nobody knows");
        for text in ["", "1-2", "1-2-3-4", "1-x-3", "rank-000"] {
            assert_eq!(Identity::parse(text), None, "{text}");
        }
    }
}
