//! How many processors this process may use at once, and what keeps it from more.

use std::fs;

use cordee_protocol::Finding;
use rustix::thread::sched_getaffinity;

/// The least of what the machine has, what the process is bound to, and what control groups leave.
pub(super) fn cpus() -> Finding {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let Some(online) = online.as_deref().and_then(count) else {
        return Finding::Unknown {
            why: "the system does not tell of its processors".to_owned(),
        };
    };
    let bound = sched_getaffinity(None).map_or(online, |set| set.count() as usize);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let read = |path: String| fs::read_to_string(path).ok();
    let quota = least_quota(&groups, &read);
    let usable = (online.min(bound) as f64).min(quota.unwrap_or(f64::INFINITY));
    let quota = quota.map_or_else(
        || "no quota".to_owned(),
        |quota| format!("quota {quota:.1}"),
    );
    Finding::with_detail(
        usable,
        format!("{online} online, bound to {bound}, {quota}"),
    )
}

/// How many numbers a list such as `0-3,8` has (cpuset(7), "List format").
fn count(list: &str) -> Option<usize> {
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (last + 1).checked_sub(first)
    });
    ranges.sum()
}

/// Processors that the groups of `/proc/self/cgroup` and those above them leave: `cpu.max` of version
/// 2 ("quota period" in microseconds, or "max"), `cpu.cfs_quota_us` and `cpu.cfs_period_us` of version 1.
fn least_quota(groups: &str, read: &dyn Fn(String) -> Option<String>) -> Option<f64> {
    let mut least: Option<f64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let is_first_version = controllers.split(',').any(|one| one == "cpu");
        if !controllers.is_empty() && !is_first_version {
            continue;
        }
        let mut path = path.trim_end_matches('/');
        loop {
            let quota = if is_first_version {
                let root = "/sys/fs/cgroup/cpu";
                let number = |name: &str| read(format!("{root}{path}/{name}"));
                ratio(
                    number("cpu.cfs_quota_us").as_deref(),
                    number("cpu.cfs_period_us").as_deref(),
                )
            } else {
                let text = read(format!("/sys/fs/cgroup{path}/cpu.max"));
                let mut words = text.as_deref().unwrap_or_default().split_whitespace();
                ratio(words.next(), words.next())
            };
            if let Some(quota) = quota {
                least = Some(least.map_or(quota, |least| least.min(quota)));
            }
            match path.rfind('/') {
                Some(end) => path = &path[..end],
                None => break,
            }
        }
    }
    least
}

/// `None` where there is no quota: `max`, or -1.
fn ratio(quota: Option<&str>, period: Option<&str>) -> Option<f64> {
    let quota: f64 = quota?.trim().parse().ok()?;
    let period: f64 = period?.trim().parse().ok()?;
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted() {
        let counts = ["0", "0-3,8\n", "0-127", "", "3-1"].map(count);
        assert_eq!(counts, [Some(1), Some(5), Some(128), None, None]);
    }

    #[test]
    fn the_narrowest_group_decides() {
        let read = |path: String| {
            let text = match path.as_str() {
                "/sys/fs/cgroup/job/step/cpu.max" => "max 100000\n",
                "/sys/fs/cgroup/job/cpu.max" => "350000 100000\n",
                "/sys/fs/cgroup/cpu/old/cpu.cfs_quota_us" => "400000",
                "/sys/fs/cgroup/cpu/old/cpu.cfs_period_us" => "100000",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(least_quota("0::/job/step\n", &read), Some(3.5));
        assert_eq!(
            least_quota("4:cpu,cpuacct:/old\n3:memory:/job\n", &read),
            Some(4.0)
        );
        assert_eq!(least_quota("0::/other\n", &read), None);
    }
}
