//! Types of `nccl.h`.

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    fmt, ptr,
};

/// What a function answers, `ncclResult_t`. A number and no Rust enum, since a later NCCL has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Status(pub c_int);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// A call to CUDA failed.
    pub const UNHANDLED_CUDA_ERROR: Self = Self(1);
    /// A call to the system failed.
    pub const SYSTEM_ERROR: Self = Self(2);
    /// A bug in NCCL, or damaged memory.
    pub const INTERNAL_ERROR: Self = Self(3);
    /// An argument has no such value.
    pub const INVALID_ARGUMENT: Self = Self(4);
    /// The call does not go together with others.
    pub const INVALID_USAGE: Self = Self(5);
    /// A peer ended, or the network did.
    pub const REMOTE_ERROR: Self = Self(6);
    /// Begun; [`Functions::comm_get_async_error`](crate::Functions) tells when it is done.
    pub const IN_PROGRESS: Self = Self(7);
    /// A deadline of NCCL's own passed.
    pub const TIMEOUT: Self = Self(8);
}

/// `ncclUniqueId`: what ranks show each other to meet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId {
    /// The bytes, of NCCL's own making.
    pub internal: [u8; 128],
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("UniqueId")
    }
}

/// What a communicator points to.
#[derive(Debug)]
#[repr(C)]
pub struct RawComm {
    private: [u8; 0],
}

/// `ncclComm_t`.
pub type Comm = *mut RawComm;

/// `cudaStream_t`, which is the driver's `CUstream` too.
pub type Stream = *mut c_void;

/// `ncclDataType_t`, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum DataType {
    /// 32-bit floats.
    Float32 = 7,
    /// 64-bit floats.
    Float64 = 8,
    /// The upper half of 32-bit floats.
    Bfloat16 = 9,
}

/// `ncclRedOp_t`, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum ReductionOperation {
    /// The sum.
    Sum = 0,
}

/// `ncclConfig_t` as of NCCL 2.18. It says so itself: a later NCCL takes its defaults for what it has
/// learnt since.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    /// 0: functions return [`Status::IN_PROGRESS`] in place of waiting.
    pub blocking: c_int,
    /// Blocks of a cluster.
    pub cga_cluster_size: c_int,
    /// Fewest blocks of a kernel.
    pub min_ctas: c_int,
    /// Most blocks of a kernel.
    pub max_ctas: c_int,
    /// The network to use.
    pub net_name: *const c_char,
    /// Whether a communicator that is split off uses what its parent has.
    pub split_share: c_int,
}

impl Config {
    /// `NCCL_CONFIG_UNDEF_INT`.
    const UNDEFINED: c_int = c_int::MIN;
    /// `NCCL_API_MAGIC`.
    const MAGIC: c_uint = 0xcafe_beef;
    /// The NCCL whose fields these are.
    const OF: c_uint = 21_800;

    /// `NCCL_CONFIG_INITIALIZER`, for functions that do not wait.
    pub const fn non_blocking() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: Self::MAGIC,
            version: Self::OF,
            blocking: 0,
            cga_cluster_size: Self::UNDEFINED,
            min_ctas: Self::UNDEFINED,
            max_ctas: Self::UNDEFINED,
            net_name: ptr::null(),
            split_share: Self::UNDEFINED,
        }
    }
}

/// A version of NCCL, `NCCL_VERSION_CODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub c_int);

impl fmt::Display for Version {
    /// Two forms of code: 1000 × major + 100 × minor + patch up to 2.8, 10000 and 100 since.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.0;
        let (major, rest) = if code < 10_000 {
            (code / 1000, code % 1000)
        } else {
            (code / 10_000, code % 10_000)
        };
        write!(formatter, "{major}.{}.{}", rest / 100, rest % 100)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Against what a C compiler says of `nccl.h` of NCCL 2.32 on x86-64.
    #[test]
    fn types_are_laid_out_as_in_c() {
        let offsets = [
            offset_of!(Config, size),
            offset_of!(Config, magic),
            offset_of!(Config, version),
            offset_of!(Config, blocking),
            offset_of!(Config, cga_cluster_size),
            offset_of!(Config, min_ctas),
            offset_of!(Config, max_ctas),
            offset_of!(Config, net_name),
            offset_of!(Config, split_share),
        ];
        assert_eq!(offsets, [0, 8, 12, 16, 20, 24, 28, 32, 40]);
        // Its last field of 2.18, and padding: the next field of later versions begins at 44.
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!((size_of::<UniqueId>(), align_of::<UniqueId>()), (128, 1));
        assert_eq!(size_of::<Status>(), 4);
        assert_eq!(size_of::<DataType>(), 4);
        assert_eq!(size_of::<ReductionOperation>(), 4);
        assert_eq!(
            [DataType::Float32, DataType::Float64, DataType::Bfloat16].map(|it| it as i32),
            [7, 8, 9]
        );
    }

    #[test]
    fn a_config_says_whose_fields_it_has() {
        let config = Config::non_blocking();
        assert_eq!(
            (config.size, config.magic, config.version, config.blocking),
            (48, 0xcafe_beef, 21_800, 0)
        );
    }

    #[test]
    fn versions_are_read_in_both_forms() {
        assert_eq!(Version(23_203).to_string(), "2.32.3");
        assert_eq!(Version(21_805).to_string(), "2.18.5");
        assert_eq!(Version(2_708).to_string(), "2.7.8");
    }
}
