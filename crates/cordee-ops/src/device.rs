//! Where operators compute: the host, or a GPU of it.

use std::path::PathBuf;

use cordee_memory::{Buffer, DType, DeviceQueue};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::error::{OpError, Result};

/// How a GPU is opened.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Where compiled kernels are kept; nowhere, if absent.
    pub kernel_cache: Option<PathBuf>,
}

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// Its number, from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// Most bytes of shared memory that a block can have.
    pub shared_memory: usize,
    /// Version of CUDA that the driver offers, as 1000 × major + 10 × minor.
    pub driver_version: u32,
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemoryUse {
    /// What this process uses now.
    pub used: usize,
    /// The most that it used at once.
    pub peak: usize,
    /// What the pool has from the system, used or kept for the next who asks.
    pub reserved: usize,
    /// What nobody has.
    pub free: usize,
}

/// Where operators compute. An operator computes where its operands are; this is for whoever makes
/// the first of them.
#[derive(Clone, Debug)]
pub struct Device(Place);

#[derive(Clone, Debug)]
enum Place {
    Host,
    #[cfg(feature = "cuda")]
    Gpu(Gpu),
}

impl Device {
    /// The processors of this machine.
    pub const HOST: Self = Self(Place::Host);

    /// How many GPUs there are: none in a build without CUDA, or where the driver does not work.
    pub fn gpus() -> usize {
        #[cfg(feature = "cuda")]
        return Gpu::count();
        #[cfg(not(feature = "cuda"))]
        0
    }

    /// The GPU of this number.
    pub fn gpu(ordinal: usize, options: &GpuOptions) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self(Place::Gpu(Gpu::open(ordinal, options)?)));
        #[cfg(not(feature = "cuda"))]
        {
            let _ = options;
            Err(OpError::Gpu {
                ordinal,
                why: "this build has no CUDA: build with `--features cuda`".to_owned(),
            })
        }
    }

    /// As candle knows it.
    pub fn candle(&self) -> candle_core::Device {
        match &self.0 {
            Place::Host => candle_core::Device::Cpu,
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => candle_core::Device::Cuda(gpu.device().clone()),
        }
    }

    /// The GPU; `None` of the host.
    #[cfg(feature = "cudnn")]
    pub(crate) fn as_gpu(&self) -> Option<&Gpu> {
        match &self.0 {
            Place::Host => None,
            Place::Gpu(gpu) => Some(gpu),
        }
    }

    /// What the GPU is; `None` of the host.
    pub fn facts(&self) -> Option<GpuFacts> {
        match &self.0 {
            Place::Host => None,
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => Some(gpu.facts().clone()),
        }
    }

    /// What is used of the GPU's memory; `None` of the host.
    pub fn memory(&self) -> Result<Option<GpuMemoryUse>> {
        match &self.0 {
            Place::Host => Ok(None),
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => gpu.memory().map(Some),
        }
    }

    /// A flat buffer of zeros in its memory.
    pub fn zeroed(&self, dtype: DType, len: usize) -> Result<Buffer> {
        match &self.0 {
            Place::Host => Buffer::zeroed(dtype, len).map_err(|source| OpError::Memory {
                op: "buffer",
                source,
            }),
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => gpu.zeroed(dtype, len),
        }
    }

    /// A queue beside the one that computes, of which the GPU prefers what is begun there: for what ranks
    /// send to each other. `None` of the host.
    pub fn queue(&self) -> Result<Option<Box<dyn DeviceQueue>>> {
        match &self.0 {
            Place::Host => Ok(None),
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => gpu.queue().map(Some),
        }
    }

    /// Algorithms that its library suggests for a product, at most; 1 on the host.
    pub fn suggestions(&self) -> usize {
        match &self.0 {
            Place::Host => 1,
            #[cfg(feature = "cuda")]
            Place::Gpu(_) => Gpu::suggestions(),
        }
    }

    /// Has products use the suggestion of this number from now on, or the last that there is, in place of
    /// the first, which is number 0: for measuring what a search would gain. Sums are ordered otherwise.
    pub fn take_suggestion(&self, index: usize) -> Result<()> {
        match &self.0 {
            Place::Host => {
                let _ = index;
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => gpu.take_suggestion(index),
        }
    }

    /// Waits until all work that was asked for is done.
    pub fn synchronise(&self) -> Result<()> {
        match &self.0 {
            Place::Host => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => gpu.synchronise("waiting"),
        }
    }
}
