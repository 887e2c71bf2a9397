//! Where a rank should run: on processors, and with memory, that are near its device.
//!
//! A GPU hangs off one of the machine's NUMA nodes. What the host does for it from another node crosses
//! the link between them. Linux tells in `/sys` which processors are local to a PCI device.

use std::path::{Path, PathBuf};

use rustix::thread::{CpuSet, sched_getaffinity};

/// Where a rank runs. Given to [`crate::Launch::placement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Processors that its threads may run on, by the system's numbers, ascending. Empty for those of
    /// the launcher.
    pub cpus: Vec<usize>,
    /// NUMA node that its memory should come from while there is some.
    pub memory_node: Option<usize>,
}

/// Why a rank stays where the system puts it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlacement {
    /// There is no choice.
    #[error("the machine has one NUMA node, so that all memory is equally near")]
    OneNode,
    /// The device or what the system tells of it is not there.
    #[error("cannot read {path}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
    /// The firmware does not say where the device is; usual in virtual machines.
    #[error("the system does not know the NUMA node of device {address}")]
    UnknownNode {
        /// The device's PCI address.
        address: String,
    },
    /// The launcher may not use the processors near the device.
    #[error(
        "this process may use none of the processors {local} that are near device {address}: whoever \
         started it restricted it to others"
    )]
    Elsewhere {
        /// The device's PCI address.
        address: String,
        /// Processors near the device, as the system lists them.
        local: String,
    },
    /// One processor would have to do everything.
    #[error(
        "this process may use only processor {cpu} of those near device {address}, and one is too few \
         for a rank"
    )]
    TooFew {
        /// The device's PCI address.
        address: String,
        /// The processor.
        cpu: usize,
    },
}

impl Placement {
    /// The processors near a PCI device that we may use, and its memory node.
    ///
    /// `sysfs` is the root of the tree, `/sys` but for tests; `allowed` are the processors to choose
    /// from, mostly [`allowed_cpus`]. The address may be written as NVML writes it, with eight digits
    /// of the domain and in capitals.
    pub fn near_device(
        sysfs: &Path,
        address: &str,
        allowed: &[usize],
    ) -> Result<Self, NoPlacement> {
        let nodes = read(&sysfs.join("devices/system/node/online"))?;
        if parse_list(&nodes).len() < 2 {
            return Err(NoPlacement::OneNode);
        }
        let address = system_address(address);
        let device = sysfs.join("bus/pci/devices").join(&address);
        let node = read(&device.join("numa_node"))?;
        let Ok(node) = node.parse() else {
            // -1
            return Err(NoPlacement::UnknownNode { address });
        };
        let local = read(&device.join("local_cpulist"))?;
        let mut cpus = parse_list(&local);
        cpus.retain(|cpu| allowed.contains(cpu));
        match cpus[..] {
            [] => Err(NoPlacement::Elsewhere { address, local }),
            [cpu] => Err(NoPlacement::TooFew { address, cpu }),
            _ => Ok(Self {
                cpus,
                memory_node: Some(node),
            }),
        }
    }

    /// What the system wants to be given; `None` where every processor will do.
    pub(crate) fn cpu_set(&self) -> Option<CpuSet> {
        let mut set = CpuSet::new();
        for &cpu in self.cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
            set.set(cpu);
        }
        (!self.cpus.is_empty()).then_some(set)
    }

    /// The memory node as a mask, one bit a node.
    pub(crate) fn node_mask(&self) -> Option<Vec<usize>> {
        let node = self.memory_node?;
        let bits = usize::BITS as usize;
        let mut mask = vec![0; node / bits + 1];
        mask[node / bits] = 1 << (node % bits);
        Some(mask)
    }
}

/// Processors that this process may run on; empty where the system does not tell.
pub fn allowed_cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect()
}

/// Processors in the system's way of writing many, `0-3,8`.
pub fn cpu_list(cpus: &[usize]) -> String {
    let ranges = cpus.chunk_by(|one, next| one + 1 == *next);
    let words = ranges.map(|range| match range {
        [first, .., last] => format!("{first}-{last}"),
        [one] => one.to_string(),
        [] => String::new(),
    });
    words.collect::<Vec<_>>().join(",")
}

/// NVML writes `00000000:3B:00.0` where the system has `0000:3b:00.0`.
fn system_address(address: &str) -> String {
    let address = address.to_ascii_lowercase();
    match address.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 && domain.starts_with("0000") => {
            format!("{}:{rest}", &domain[4..])
        }
        _ => address,
    }
}

fn read(path: &Path) -> Result<String, NoPlacement> {
    match fs_err::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) => Err(NoPlacement::Unreadable {
            path: path.to_owned(),
        }),
    }
}

/// Reads `0-3,8`; what is no number is passed over.
fn parse_list(text: &str) -> Vec<usize> {
    let ranges = text.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "00000000:3B:00.0";

    fn near(nodes: &str, node: &str, local: &str, allowed: &[usize]) -> Result<Placement, String> {
        let tree = tempfile::tempdir().unwrap();
        let device = tree.path().join("bus/pci/devices/0000:3b:00.0");
        let system = tree.path().join("devices/system/node");
        for directory in [&device, &system] {
            fs_err::create_dir_all(directory).unwrap();
        }
        fs_err::write(system.join("online"), nodes).unwrap();
        fs_err::write(device.join("numa_node"), node).unwrap();
        fs_err::write(device.join("local_cpulist"), local).unwrap();
        let placement = Placement::near_device(tree.path(), ADDRESS, allowed);
        placement.map_err(|error| error.to_string())
    }

    #[test]
    fn a_rank_gets_the_allowed_processors_of_its_device() {
        let all: Vec<_> = (0..16).collect();
        let placement = near("0-1\n", "1\n", "4-7,12-15\n", &all).unwrap();
        assert_eq!(cpu_list(&placement.cpus), "4-7,12-15");
        assert_eq!(placement.memory_node, Some(1));
        let placement = near("0-1\n", "1\n", "4-7,12-15\n", &[0, 5, 6, 13]).unwrap();
        assert_eq!(placement.cpus, [5, 6, 13]);
    }

    #[test]
    fn why_there_is_no_placement_is_said() {
        let why =
            |nodes, node, local, allowed: &[usize]| near(nodes, node, local, allowed).unwrap_err();
        assert_eq!(
            why("0\n", "0\n", "0-7\n", &[0, 1]),
            "the machine has one NUMA node, so that all memory is equally near"
        );
        assert_eq!(
            why("0-1\n", "-1\n", "0-7\n", &[0, 1]),
            "the system does not know the NUMA node of device 0000:3b:00.0"
        );
        assert_eq!(
            why("0-1\n", "1\n", "4-7\n", &[0, 1]),
            "this process may use none of the processors 4-7 that are near device 0000:3b:00.0: \
             whoever started it restricted it to others"
        );
        assert_eq!(
            why("0-1\n", "1\n", "4-7\n", &[0, 5]),
            "this process may use only processor 5 of those near device 0000:3b:00.0, and one is too \
             few for a rank"
        );
        let missing = Placement::near_device(Path::new("/no/such/tree"), ADDRESS, &[0, 1]);
        let text = missing.unwrap_err().to_string();
        assert_eq!(text, "cannot read /no/such/tree/devices/system/node/online");
    }

    #[test]
    fn a_node_is_a_bit() {
        let mask = |node| {
            let placement = Placement {
                cpus: Vec::new(),
                memory_node: node,
            };
            placement.node_mask()
        };
        assert_eq!(mask(None), None);
        assert_eq!(mask(Some(1)), Some(vec![2]));
        assert_eq!(mask(Some(65)), Some(vec![0, 2]));
    }

    #[test]
    fn lists_are_written_as_they_are_read() {
        for text in ["0-3,8", "5", "1,3,5-6", ""] {
            assert_eq!(cpu_list(&parse_list(text)), text);
        }
        assert!(!allowed_cpus().is_empty());
    }
}
