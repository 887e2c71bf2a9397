//! What `cordee smoke` looks at, and what is found.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::message::null_is_nan;

/// Something about a machine that can be measured. What is good enough is decided by who asks; the
/// unit of its number stands with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Milliseconds by which the wall clock and the steady one differ within a tenth of a second.
    Clock,
    /// Bytes that a user may still write to the file system.
    FreeSpace,
    /// Files that may still be made in the file system.
    FreeInodes,
    /// Bytes that fit in `/dev/shm`.
    SharedMemory,
    /// Bytes that a process may lock in memory.
    LockedMemory,
    /// Files that a process may have open.
    OpenFiles,
    /// Bytes that a thread's stack may grow to.
    Stack,
    /// Processors that this process may use at once.
    Cpus,
    /// Bytes of memory that are available.
    Memory,
    /// Errors of a GPU's memory that were not corrected, since the driver was loaded.
    GpuUncorrectedErrors,
    /// Errors of a GPU's memory that were corrected, in its life.
    GpuCorrectedErrors,
    /// Rows of a GPU's memory that wait for a reset to be replaced, or could not be.
    GpuRemappedRows,
    /// Errors (Xid) that the kernel's log has of a GPU, of those that call for its exchange or reset.
    GpuXid,
    /// Reasons that hold a GPU's clocks down.
    GpuThrottle,
    /// Degrees Celsius of a GPU.
    GpuTemperature,
    /// Bytes of a GPU's memory in use.
    GpuMemoryInUse,
    /// Links between GPUs that are down.
    GpuLinksDown,
    /// Lanes of PCI Express that a GPU lacks.
    GpuLanesMissing,
    /// Numbers of an exact product of matrices that a device got wrong.
    Products,
    /// Numbers that ranks got wrong in collectives, by way of the host's memory.
    HostSums,
    /// Numbers that ranks got wrong in collectives between GPUs.
    GpuSums,
    /// Bytes that were read from storage other than they were written.
    StorageBytes,
    /// 10¹² floating-point operations a second in a product of f32 matrices.
    MatmulF32,
    /// The same in bf16.
    MatmulBf16,
    /// 10⁹ bytes a second, read and written, of a copy within a device's memory.
    MemoryBandwidth,
    /// 10⁹ bytes a second from the host's pageable memory to a GPU.
    CopyToGpu,
    /// 10⁹ bytes a second from a GPU to the host's pageable memory.
    CopyFromGpu,
    /// 10⁹ bytes a second of bus bandwidth of sums over ranks, by way of the host's memory.
    HostAllReduce,
    /// The same between GPUs.
    GpuAllReduce,
    /// 10⁹ bytes a second of writing a file until it is durable.
    StorageWrite,
    /// 10⁹ bytes a second of reading it back.
    StorageRead,
    /// The largest relative difference of a loss from the one on record, over twenty training steps.
    Training,
}

impl Check {
    /// What one rank finds out about the machine, in order.
    pub const OF_HOST: [Self; 12] = [
        Self::Clock,
        Self::FreeSpace,
        Self::FreeInodes,
        Self::SharedMemory,
        Self::LockedMemory,
        Self::OpenFiles,
        Self::Stack,
        Self::Cpus,
        Self::Memory,
        Self::StorageBytes,
        Self::StorageWrite,
        Self::StorageRead,
    ];

    /// What each rank on the CPU finds out about its processors, in order.
    pub const OF_PROCESSORS: [Self; 3] = [Self::Products, Self::MatmulF32, Self::MemoryBandwidth];

    /// What each rank on a GPU finds out about it, in order.
    pub const OF_GPU: [Self; 6] = [
        Self::Products,
        Self::MatmulF32,
        Self::MatmulBf16,
        Self::MemoryBandwidth,
        Self::CopyToGpu,
        Self::CopyFromGpu,
    ];

    /// What ranks find out together by way of the host's memory, in order.
    pub const OF_HOST_LINKS: [Self; 2] = [Self::HostSums, Self::HostAllReduce];

    /// What ranks find out together between GPUs, in order.
    pub const OF_GPU_LINKS: [Self; 2] = [Self::GpuSums, Self::GpuAllReduce];

    /// Its name, as files and flags spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::FreeSpace => "free_space",
            Self::FreeInodes => "free_inodes",
            Self::SharedMemory => "shared_memory",
            Self::LockedMemory => "locked_memory",
            Self::OpenFiles => "open_files",
            Self::Stack => "stack",
            Self::Cpus => "cpus",
            Self::Memory => "memory",
            Self::GpuUncorrectedErrors => "gpu_uncorrected_errors",
            Self::GpuCorrectedErrors => "gpu_corrected_errors",
            Self::GpuRemappedRows => "gpu_remapped_rows",
            Self::GpuXid => "gpu_xid",
            Self::GpuThrottle => "gpu_throttle",
            Self::GpuTemperature => "gpu_temperature",
            Self::GpuMemoryInUse => "gpu_memory_in_use",
            Self::GpuLinksDown => "gpu_links_down",
            Self::GpuLanesMissing => "gpu_lanes_missing",
            Self::Products => "products",
            Self::HostSums => "host_sums",
            Self::GpuSums => "gpu_sums",
            Self::StorageBytes => "storage_bytes",
            Self::MatmulF32 => "matmul_f32",
            Self::MatmulBf16 => "matmul_bf16",
            Self::MemoryBandwidth => "memory_bandwidth",
            Self::CopyToGpu => "copy_to_gpu",
            Self::CopyFromGpu => "copy_from_gpu",
            Self::HostAllReduce => "host_all_reduce",
            Self::GpuAllReduce => "gpu_all_reduce",
            Self::StorageWrite => "storage_write",
            Self::StorageRead => "storage_read",
            Self::Training => "training",
        }
    }

    /// How long it may take where somebody has no more patience than `most`.
    pub fn deadline_within(self, most: Option<Duration>) -> Duration {
        most.map_or(self.deadline(), |most| most.min(self.deadline()))
    }

    /// How long it may take; after that nobody knows. Many times what it takes where all is well.
    pub const fn deadline(self) -> Duration {
        Duration::from_secs(match self {
            Self::Training => 120,
            Self::HostSums
            | Self::GpuSums
            | Self::HostAllReduce
            | Self::GpuAllReduce
            | Self::StorageBytes => 60,
            // Whoever is first waits for a device to be opened and for kernels to be compiled.
            Self::Products => 90,
            Self::StorageWrite
            | Self::StorageRead
            | Self::MatmulF32
            | Self::MatmulBf16
            | Self::MemoryBandwidth
            | Self::CopyToGpu
            | Self::CopyFromGpu => 30,
            _ => 10,
        })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It was measured.
    Measured {
        /// In the unit of the check; infinite where there is no limit.
        #[serde(with = "number")]
        value: f64,
        /// What else is to be known, in words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// What it is about does not work: there is nothing to measure.
    Broken {
        /// What happened.
        why: String,
    },
    /// It could not be made, or not by its deadline.
    Unknown {
        /// Why.
        why: String,
    },
}

impl Finding {
    /// A number and nothing else.
    pub fn measured(value: f64) -> Self {
        Self::Measured {
            value,
            detail: None,
        }
    }

    /// A number and words.
    pub fn with_detail(value: f64, detail: impl Into<String>) -> Self {
        Self::Measured {
            value,
            detail: Some(detail.into()),
        }
    }
}

/// One check of one thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// What was looked at.
    pub check: Check,
    /// Of which of several: `rank 1`, `GPU 3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// What came of it.
    pub finding: Finding,
}

/// JSON has no infinity, which is what a limit is that there is not; it is written as a word.
mod number {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde calls it with a reference"
    )]
    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if *value == f64::INFINITY {
            serializer.serialize_str(UNLIMITED)
        } else {
            serializer.serialize_f64(*value)
        }
    }

    const UNLIMITED: &str = "unlimited";

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Word(String),
        Number(#[serde(deserialize_with = "super::null_is_nan")] f64),
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Word(word) if word == UNLIMITED => f64::INFINITY,
            Written::Word(word) => {
                return Err(serde::de::Error::custom(format!("`{word}` is no number")));
            }
            Written::Number(value) => value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_there_is_not_is_read_back() {
        for value in [f64::INFINITY, 3.5] {
            let finding = Finding::measured(value);
            let text = serde_json::to_string(&finding).unwrap();
            assert_eq!(serde_json::from_str::<Finding>(&text).unwrap(), finding);
        }
        let text = serde_json::to_string(&Finding::measured(f64::NAN)).unwrap();
        let Finding::Measured { value, .. } = serde_json::from_str(&text).unwrap() else {
            panic!("it was measured");
        };
        assert!(value.is_nan());
    }

    #[test]
    fn a_check_has_one_name() {
        for check in [Check::MatmulBf16, Check::GpuXid, Check::CopyFromGpu] {
            assert_eq!(serde_json::to_value(check).unwrap(), check.name());
        }
    }
}
