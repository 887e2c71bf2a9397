//! Errors of GPUs that the kernel's log has: NVIDIA calls them Xid. The management library tells of
//! those alone that come while it listens.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    time::Duration,
};

use rustix::fs::OFlags;

/// Those that call for the exchange or the reset of a GPU: the list of Azure's node health checks
/// (azurehpc-health-checks, `azure_gpu_xid.nhc`).
const GRAVE: [u32; 18] = [
    48, 56, 57, 58, 62, 63, 64, 65, 68, 69, 73, 74, 79, 80, 81, 92, 119, 120,
];

/// What is older was repaired, or would have come again.
const RECENT: Duration = Duration::from_hours(2);

/// An error of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Xid {
    /// Place of the GPU, as [`place`] has it.
    pub(crate) place: String,
    /// What kind of error it is.
    pub(crate) number: u32,
}

/// The grave ones of late, of all GPUs. An error says why the log cannot be read.
pub(crate) fn recent() -> Result<Vec<Xid>, String> {
    let why = |error: std::io::Error| format!("/dev/kmsg: {error}");
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open("/dev/kmsg")
        .map_err(why)?;
    let uptime = fs::read_to_string("/proc/uptime").map_err(why)?;
    let seconds = uptime.split(' ').next().and_then(|it| it.parse().ok());
    let uptime = Duration::from_secs_f64(seconds.unwrap_or(f64::from(u32::MAX)));
    let mut found = Vec::new();
    // A read gives one record (Documentation/ABI/testing/dev-kmsg).
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(len) => {
                let text = String::from_utf8_lossy(&record[..len]);
                found.extend(xid(&text, uptime.saturating_sub(RECENT)));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // The record was overwritten before it was read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(why(error)),
        }
    }
    Ok(found)
}

/// `4,1032,5140900,-;NVRM: Xid (PCI:0000:18:00): 79, pid=…, GPU has fallen off the bus.`; the third
/// number is in microseconds since the start of the system.
fn xid(record: &str, after: Duration) -> Option<Xid> {
    let (head, text) = record.split_once(';')?;
    let at = head.split(',').nth(2)?.parse().ok()?;
    if Duration::from_micros(at) < after {
        return None;
    }
    let (_, rest) = text.split_once("NVRM: Xid (PCI:")?;
    let (bus, rest) = rest.split_once("):")?;
    let number = rest.trim_start().split(|it: char| !it.is_ascii_digit());
    let number = number.into_iter().next()?.parse().ok()?;
    GRAVE.contains(&number).then(|| Xid {
        place: place(bus),
        number,
    })
}

/// Domain, bus and device, as `0000:18:00`, of however a place is spelled: `00000000:18:00.0`.
pub(crate) fn place(bus: &str) -> String {
    let bus = bus.split('.').next().unwrap_or(bus).to_ascii_lowercase();
    let (domain, rest) = bus.split_once(':').unwrap_or(("", &bus));
    let domain = domain.get(domain.len().saturating_sub(4)..).unwrap_or("");
    format!("{domain}:{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grave_errors_of_late_are_found() {
        let line = |at: u64, text: &str| format!("4,1032,{at},-;{text}\n SUBSYSTEM=pci\n");
        let lost = "NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>', GPU has fallen off the bus.";
        let after = Duration::from_secs(100);
        let found = xid(&line(100_000_000, lost), after).unwrap();
        assert_eq!((found.place.as_str(), found.number), ("0000:18:00", 79));
        assert_eq!(xid(&line(99_999_999, lost), after), None);
        // A program that failed, which is nobody's fault but its own.
        let program = "NVRM: Xid (PCI:0000:18:00): 31, pid=1, name=python, MMU Fault";
        assert_eq!(xid(&line(200_000_000, program), after), None);
        assert_eq!(xid(&line(200_000_000, "usb 1-1: new device"), after), None);
        assert_eq!(xid("garbage", after), None);
    }

    #[test]
    fn places_are_spelled_alike() {
        assert_eq!(place("00000000:18:00.0"), "0000:18:00");
        assert_eq!(place("0000:AF:00"), "0000:af:00");
    }
}
