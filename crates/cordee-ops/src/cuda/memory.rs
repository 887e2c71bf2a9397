//! Memory of a GPU behind a flat buffer.

use std::{any::Any, fmt, ops::Range};

use cordee_memory::{DeviceMemory, MemoryError};
use cudarc::driver::{CudaSlice, DevicePtr, DriverError, result};

use super::{Gpu, driver_error};
use crate::{error::Result, operand::Operator};

/// Bytes of a GPU's memory, given back when dropped.
pub(super) struct GpuMemory {
    gpu: Gpu,
    bytes: CudaSlice<u8>,
    address: u64,
}

impl fmt::Debug for GpuMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} bytes of GPU {}",
            self.bytes.len(),
            self.gpu.facts().ordinal
        )
    }
}

impl GpuMemory {
    pub(super) fn new(gpu: &Gpu, op: Operator, bytes: usize) -> Result<Self> {
        let bytes = gpu.allocate::<u8>(op, bytes)?;
        let (address, _) = bytes.device_ptr(gpu.stream());
        Ok(Self {
            gpu: gpu.clone(),
            bytes,
            address,
        })
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The address of some of the bytes, all of which are there.
    fn part(&self, bytes: &Range<usize>) -> std::result::Result<u64, MemoryError> {
        if bytes.start > bytes.end || bytes.end > self.bytes.len() {
            return Err(MemoryError::Range {
                range: bytes.clone(),
                len: self.bytes.len(),
            });
        }
        Ok(self.address + bytes.start as u64)
    }

    /// Calls the driver about some of the bytes, if there are any.
    fn ask(
        &self,
        action: &'static str,
        bytes: Range<usize>,
        call: impl FnOnce(u64) -> std::result::Result<(), DriverError>,
    ) -> std::result::Result<(), MemoryError> {
        let start = self.part(&bytes)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let context = self.gpu.stream().context();
        context
            .bind_to_thread()
            .and_then(|()| call(start))
            .map_err(|error| MemoryError::Device {
                action,
                bytes: bytes.len(),
                why: driver_error("memory", action, error).to_string(),
            })
    }
}

impl DeviceMemory for GpuMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> std::result::Result<(), MemoryError> {
        let stream = self.gpu.stream();
        self.ask("writing", offset..offset + bytes.len(), |start| {
            // SAFETY: the range is inside the memory; the stream is waited for, so the source
            // outlives the copy.
            unsafe { result::memcpy_htod_async(start, bytes, stream.cu_stream()) }?;
            stream.synchronize()
        })
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) -> std::result::Result<(), MemoryError> {
        let stream = self.gpu.stream();
        self.ask("reading", offset..offset + bytes.len(), |start| {
            // SAFETY: the range is inside the memory; the stream is waited for, so the copy is done
            // before the destination is used.
            unsafe { result::memcpy_dtoh_async(bytes, start, stream.cu_stream()) }?;
            stream.synchronize()
        })
    }

    fn fill_zero(&self, bytes: Range<usize>) -> std::result::Result<(), MemoryError> {
        let (stream, len) = (self.gpu.stream(), bytes.len());
        self.ask("clearing", bytes, |start| {
            // SAFETY: the range is inside the memory.
            unsafe { result::memset_d8_async(start, 0, len, stream.cu_stream()) }
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
