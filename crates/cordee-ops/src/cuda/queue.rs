//! A second stream of a GPU, for what ranks send to each other.
//!
//! Whoever begins work here on a buffer keeps the buffer until the computing stream has been told to
//! come after ([`DeviceQueue::lead`]) or the queue is done: memory goes back to the pool in the order of
//! the computing stream.

use std::{ffi::c_void, fmt, ptr::NonNull, sync::Arc};

use cordee_memory::{DeviceQueue, MemoryError};
use cudarc::driver::{CudaEvent, CudaStream, DriverError, sys};

use super::{Gpu, driver_error};
use crate::error::Result;

const OP: &str = "queue";

/// A stream beside the one that computes, before which the GPU prefers nothing: a transfer that waits
/// holds up every other rank.
pub(super) struct GpuQueue {
    gpu: Gpu,
    stream: Arc<CudaStream>,
    /// What was given to compute, as of the last `follow`.
    computed: CudaEvent,
    /// What was begun here, as of the last `lead`.
    begun: CudaEvent,
}

impl fmt::Debug for GpuQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a queue of GPU {}", self.gpu.facts().ordinal)
    }
}

// SAFETY: streams and events are the driver's handles, which any thread may use; each call makes the GPU
// the current one of its thread.
unsafe impl Send for GpuQueue {}

impl GpuQueue {
    pub(super) fn new(gpu: &Gpu) -> Result<Self> {
        let made = || {
            let context = gpu.stream().context();
            context.bind_to_thread()?;
            let (mut least, mut greatest) = (0, 0);
            // SAFETY: writes two numbers.
            unsafe { sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest) }
                .result()?;
            let untimed = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
            Ok(Self {
                gpu: gpu.clone(),
                stream: context.new_stream_with_priority(greatest)?,
                computed: context.new_event(untimed)?,
                begun: context.new_event(untimed)?,
            })
        };
        made().map_err(|error| driver_error(OP, "making a second stream", error))
    }

    fn bind(&self) -> std::result::Result<(), DriverError> {
        self.stream.context().bind_to_thread()
    }
}

fn failed(action: &'static str, error: DriverError) -> MemoryError {
    MemoryError::Queue {
        action,
        why: driver_error(OP, action, error).to_string(),
    }
}

impl DeviceQueue for GpuQueue {
    fn pointer(&self) -> NonNull<c_void> {
        let stream = self.stream.cu_stream().cast();
        NonNull::new(stream).expect("a stream that was made is none of the default ones")
    }

    fn follow(&self) -> std::result::Result<(), MemoryError> {
        let ordered = self
            .bind()
            .and_then(|()| self.computed.record(self.gpu.stream()))
            .and_then(|()| self.stream.wait(&self.computed));
        ordered.map_err(|error| failed("ordering an exchange after the computation", error))
    }

    fn lead(&self) -> std::result::Result<(), MemoryError> {
        let ordered = self
            .bind()
            .and_then(|()| self.begun.record(&self.stream))
            .and_then(|()| self.gpu.stream().wait(&self.begun));
        ordered.map_err(|error| failed("ordering the computation after an exchange", error))
    }

    fn is_done(&self) -> std::result::Result<bool, MemoryError> {
        let asked = self.bind().and_then(|()| {
            // SAFETY: the stream is alive.
            unsafe { sys::cuStreamQuery(self.stream.cu_stream()) }.result()
        });
        match asked {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(failed("asking whether an exchange is done", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use cordee_memory::DType;

    use crate::{Device, GpuOptions};

    /// Orders both ways are taken, and an idle queue is done. That they order anything is tested with
    /// transports, in `cordee-comm`.
    #[test]
    fn an_idle_queue_is_done() {
        assert!(Device::HOST.queue().unwrap().is_none());
        if Device::gpus() == 0 {
            return;
        }
        let device = Device::gpu(0, &GpuOptions::default()).unwrap();
        let queue = device.queue().unwrap().expect("a GPU has queues");
        let mut buffer = device.zeroed(DType::F32, 1000).unwrap();
        queue.follow().unwrap();
        buffer.fill_zero().unwrap();
        queue.lead().unwrap();
        device.synchronise().unwrap();
        while !queue.is_done().unwrap() {
            std::thread::yield_now();
        }
        let other = device
            .queue()
            .unwrap()
            .expect("and as many as are asked for");
        assert_ne!(queue.pointer(), other.pointer());
    }
}
