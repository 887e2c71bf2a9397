//! Where the time of a step went.

use std::time::Instant;

use cordee_comm::{CommError, ProcessGroup};

/// Adds up the seconds of one kind of work.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    seconds: f64,
}

impl Stopwatch {
    /// Runs `work` and counts its time.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.seconds += started.elapsed().as_secs_f64();
        result
    }

    /// Counts some seconds more.
    pub(crate) fn add(&mut self, seconds: f64) {
        self.seconds += seconds;
    }

    /// The seconds so far; starts again from zero.
    pub(crate) fn take(&mut self) -> f64 {
        std::mem::take(&mut self.seconds)
    }
}

/// Resident memory of this process, in bytes; 0 where the system does not say.
pub(crate) fn resident_bytes() -> u64 {
    // Second field of statm: resident pages (proc_pid_statm(5)).
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// The most memory of this process that was ever resident, in bytes; 0 where the system does not say.
fn peak_resident_bytes() -> u64 {
    // VmHWM of proc_pid_status(5); a program starts with its own count when it is executed.
    let kibibytes = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        });
    kibibytes.unwrap_or(0) * 1024
}

/// The most memory of each rank that was ever resident, in bytes, by rank.
pub(crate) fn peaks_of_ranks(group: &mut dyn ProcessGroup) -> Result<Vec<u64>, CommError> {
    let peaks = group.gather_bytes(&peak_resident_bytes().to_le_bytes())?;
    Ok(peaks
        .iter()
        .map(|bytes| bytes.as_slice().try_into().map_or(0, u64::from_le_bytes))
        .collect())
}
