//! What is said of each check: its stage, its unit, and what to try where it is bad.

use cordee_protocol::Check;
use serde::Serialize;

use crate::console::bytes;

/// When a check is made; what comes first is what the rest builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The machine is set up as it should be.
    Sanity,
    /// Its parts work and are right.
    Validation,
    /// They are as fast as they should be.
    Performance,
    /// They train.
    Training,
}

impl Stage {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sanity => "sanity",
            Self::Validation => "validation",
            Self::Performance => "performance",
            Self::Training => "training",
        }
    }

    pub(super) const fn of(check: Check) -> Self {
        use Check as C;
        match check {
            C::Clock
            | C::FreeSpace
            | C::FreeInodes
            | C::SharedMemory
            | C::LockedMemory
            | C::OpenFiles
            | C::Stack
            | C::Cpus
            | C::Memory => Self::Sanity,
            C::GpuUncorrectedErrors
            | C::GpuCorrectedErrors
            | C::GpuRemappedRows
            | C::GpuXid
            | C::GpuThrottle
            | C::GpuTemperature
            | C::GpuMemoryInUse
            | C::GpuLinksDown
            | C::GpuLanesMissing
            | C::Products
            | C::HostSums
            | C::GpuSums
            | C::StorageBytes => Self::Validation,
            C::MatmulF32
            | C::MatmulBf16
            | C::MemoryBandwidth
            | C::CopyToGpu
            | C::CopyFromGpu
            | C::HostAllReduce
            | C::GpuAllReduce
            | C::StorageWrite
            | C::StorageRead => Self::Performance,
            C::Training => Self::Training,
        }
    }
}

/// A number of a check with its unit, as a person reads it.
pub(super) fn quantity(check: Check, value: f64) -> String {
    use Check as C;
    if value == f64::INFINITY {
        return "unlimited".to_owned();
    }
    match check {
        C::FreeSpace
        | C::SharedMemory
        | C::LockedMemory
        | C::Stack
        | C::Memory
        | C::GpuMemoryInUse
        | C::StorageBytes => bytes(value as u64),
        C::Clock => format!("{value:.2} ms"),
        C::GpuTemperature => format!("{value} degrees C"),
        C::MatmulF32 | C::MatmulBf16 => format!("{} TFLOP/s", three_digits(value)),
        C::MemoryBandwidth
        | C::CopyToGpu
        | C::CopyFromGpu
        | C::HostAllReduce
        | C::GpuAllReduce
        | C::StorageWrite
        | C::StorageRead => format!("{} GB/s", three_digits(value)),
        C::Training => format!("{value:.1e}"),
        C::FreeInodes
        | C::OpenFiles
        | C::Cpus
        | C::GpuUncorrectedErrors
        | C::GpuCorrectedErrors
        | C::GpuRemappedRows
        | C::GpuXid
        | C::GpuThrottle
        | C::GpuLinksDown
        | C::GpuLanesMissing
        | C::Products
        | C::HostSums
        | C::GpuSums => format!("{value}"),
    }
}

fn three_digits(value: f64) -> String {
    let digits = match value.abs() {
        size if size < 0.1 => 4,
        size if size < 1.0 => 3,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// What to try where the check is bad.
pub(super) const fn fix(check: Check) -> &'static str {
    use Check as C;
    match check {
        C::Clock => "start chrony or another time service, and let it set the clock",
        C::FreeSpace => "remove old runs and checkpoints, or name another file system with --dir",
        C::FreeInodes => "remove small files, or name another file system with --dir",
        C::SharedMemory => "mount -o remount,size=8G /dev/shm; in a container, give it --shm-size",
        C::LockedMemory => {
            "ulimit -l unlimited; under Slurm, PropagateResourceLimitsExcept=MEMLOCK and LimitMEMLOCK=infinity for slurmd"
        }
        C::OpenFiles => "ulimit -n 65536, or LimitNOFILE of the service that starts jobs",
        C::Stack => {
            "ulimit -s 8192: a stack without limit gives threads 2 MB, too few for NCCL before 2.28"
        }
        C::Cpus => {
            "ask the scheduler for more processors for each task; --cpus-per-task under Slurm"
        }
        C::Memory => "end what else runs here: ps -eo rss,comm --sort=-rss",
        C::GpuUncorrectedErrors => {
            "take the node out and reset the GPU: nvidia-smi --gpu-reset; exchange it if errors come back"
        }
        C::GpuCorrectedErrors => {
            "watch it: nvidia-smi -q -d ECC; exchange it if the number grows fast"
        }
        C::GpuRemappedRows => {
            "reset the GPU, which replaces what is pending: nvidia-smi --gpu-reset; exchange it where replacing failed"
        }
        C::GpuXid => "take the node out and read what the driver says: dmesg | grep -i xid",
        C::GpuThrottle => "look for heat and power: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
        C::GpuTemperature => "look at fans, coolant and what stands beside the node",
        C::GpuMemoryInUse => {
            "end whoever holds it: nvidia-smi --query-compute-apps=pid,used_memory --format=csv"
        }
        C::GpuLinksDown => {
            "take the node out: nvidia-smi nvlink --status; is the fabric manager running?"
        }
        C::GpuLanesMissing => "seat the card or its riser anew: nvidia-smi -q -d PCIE, lspci -vv",
        C::Products => "take the node out: a device that multiplies wrongly spoils every run",
        C::HostSums => "take the node out: test its memory, and `cordee bench comm --device cpu`",
        C::GpuSums => {
            "take the node out: `cordee bench comm` tells which sizes, nvidia-smi nvlink --errorcounters which links"
        }
        C::StorageBytes => {
            "see whether the directory can be written to and has room; name another with --dir"
        }
        C::MatmulF32 | C::MatmulBf16 => {
            "compare clocks and power of the devices: nvidia-smi -q -d CLOCK,POWER; look for other processes"
        }
        C::MemoryBandwidth => {
            "look for other processes, and for memory clocks held down: nvidia-smi -q -d CLOCK"
        }
        C::CopyToGpu | C::CopyFromGpu => {
            "look at the width and generation of PCI Express: nvidia-smi -q -d PCIE; are ranks bound to the near processor?"
        }
        C::HostAllReduce => {
            "look for other processes; `cordee bench comm --device cpu` tells of all sizes"
        }
        C::GpuAllReduce => {
            "`cordee bench comm` tells of all sizes; NCCL_DEBUG=INFO says which links it takes"
        }
        C::StorageWrite | C::StorageRead => {
            "compare with another directory by --dir; ask whoever runs the file system"
        }
        C::Training => {
            "`cordee verify operators` and `cordee verify trace` tell which part is wrong"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_three_digits_and_a_unit() {
        let shown = [
            (Check::FreeSpace, 3.0 * f64::from(1 << 30)),
            (Check::LockedMemory, f64::INFINITY),
            (Check::MatmulF32, 0.0834),
            (Check::MatmulBf16, 689.71),
            (Check::StorageRead, 2.345),
            (Check::Cpus, 3.5),
            (Check::GpuCorrectedErrors, 5e7),
            (Check::Clock, 0.004),
            (Check::Training, 3.1e-8),
        ]
        .map(|(check, value)| quantity(check, value));
        assert_eq!(
            shown,
            [
                "3.00GiB",
                "unlimited",
                "0.0834 TFLOP/s",
                "690 TFLOP/s",
                "2.35 GB/s",
                "3.5",
                "50000000",
                "0.00 ms",
                "3.1e-8"
            ]
        );
    }
}
