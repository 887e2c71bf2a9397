//! One GPU of this process.

use std::{
    ffi::c_void,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use candle_core::{
    DType as TensorType, DeviceLocation, Storage, Tensor,
    cuda_backend::{CudaDevice, CudaStorage},
    op::BackpropOp,
};
use cordee_memory::{Buffer, DType, DeviceQueue, View};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, DriverError, result, sys};

use super::{
    Address, Resident, driver_error,
    memory::GpuMemory,
    module::Modules,
    product::{Blas, CANDIDATES},
    queue::GpuQueue,
    words::Uploads,
};
use crate::{
    device::{GpuFacts, GpuMemoryUse, GpuOptions},
    error::{OpError, Result},
    operand::Operator,
};

/// A GPU, its stream, and what was compiled for it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gpu(Arc<Inner>);

struct Inner {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    pool: sys::CUmemoryPool,
    facts: GpuFacts,
    modules: Modules,
    uploads: Mutex<Uploads>,
    blas: OnceLock<Blas>,
}

// SAFETY: the pool is the driver's handle of the device's default pool, valid in every thread for as
// long as the process lives.
unsafe impl Send for Inner {}
// SAFETY: as for `Send`; the driver's functions on it may be called from several threads.
unsafe impl Sync for Inner {}

/// Those that were opened: a tensor knows its candle device alone.
static OPEN: RwLock<Vec<Gpu>> = RwLock::new(Vec::new());

impl fmt::Debug for Gpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.facts.fmt(formatter)
    }
}

impl Gpu {
    /// How many there are. None, too, where the driver does not work.
    pub(crate) fn count() -> usize {
        let count = result::init().and_then(|()| result::device::get_count());
        count.map_or(0, |count| count as usize)
    }

    /// Opens one; the same, if it was opened before.
    pub(crate) fn open(ordinal: usize, options: &GpuOptions) -> Result<Self> {
        let mut open = OPEN.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.iter().find(|gpu| gpu.0.facts.ordinal == ordinal) {
            return Ok(gpu.clone());
        }
        let refused = |why: String| OpError::Gpu { ordinal, why };
        result::init().map_err(|error| refused(why(error)))?;
        let count = Self::count();
        if ordinal >= count {
            return Err(refused(format!("there are {count} GPUs, counted from 0")));
        }
        let device =
            CudaDevice::new_with_stream(ordinal).map_err(|error| refused(error.to_string()))?;
        // SAFETY: one stream does all the work on this device, so tensors need no events to be
        // freed in order; other streams are ordered by whoever makes them (see the module).
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        let facts = facts(ordinal, &stream).map_err(|error| refused(why(error)))?;
        let pool = keep_freed_memory(&stream).map_err(|error| refused(why(error)))?;
        let architecture = facts.compute_capability;
        let gpu = Self(Arc::new(Inner {
            device,
            stream,
            pool,
            facts,
            modules: Modules::new(architecture, options.kernel_cache.clone()),
            uploads: Mutex::default(),
            blas: OnceLock::new(),
        }));
        open.push(gpu.clone());
        Ok(gpu)
    }

    /// The GPU that holds a tensor.
    pub(crate) fn of(tensor: &Tensor) -> Option<Self> {
        let DeviceLocation::Cuda { gpu_id } = tensor.device().location() else {
            return None;
        };
        let open = OPEN.read().unwrap_or_else(PoisonError::into_inner);
        let mine = |gpu: &&Self| gpu.0.facts.ordinal == gpu_id;
        open.iter().find(mine).cloned()
    }

    /// The GPU that holds the elements of a view.
    pub(crate) fn of_view(view: &View<'_>) -> Option<Self> {
        let memory = view.device()?.memory().as_any();
        memory
            .downcast_ref::<GpuMemory>()
            .map(|memory| memory.gpu().clone())
    }

    /// Whether it is the same one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// As candle knows it.
    pub(crate) fn device(&self) -> &CudaDevice {
        &self.0.device
    }

    /// The stream that does all the work.
    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.0.stream
    }

    pub(crate) fn facts(&self) -> &GpuFacts {
        &self.0.facts
    }

    pub(super) fn modules(&self) -> &Modules {
        &self.0.modules
    }

    /// cuBLASLt, opened when it is first asked for.
    pub(super) fn blas(&self, op: Operator) -> Result<&Blas> {
        if let Some(blas) = self.0.blas.get() {
            return Ok(blas);
        }
        let blas = Blas::new(self, op)?;
        // Where another thread was faster, its stays.
        Ok(self.0.blas.get_or_init(|| blas))
    }

    /// How many algorithms the library is asked for, for each product.
    pub(crate) fn suggestions() -> usize {
        CANDIDATES
    }

    /// Has products use the one of this number, or the last.
    pub(crate) fn take_suggestion(&self, index: usize) -> Result<()> {
        self.blas(Operator("product"))?.take_suggestion(index);
        Ok(())
    }

    /// Waits until all work is done.
    pub(crate) fn synchronise(&self, op: &'static str) -> Result<()> {
        self.0
            .stream
            .synchronize()
            .map_err(|error| driver_error(op, "waiting for the GPU", error))
    }

    /// A stream beside the one that computes.
    pub(crate) fn queue(&self) -> Result<Box<dyn DeviceQueue>> {
        Ok(Box::new(GpuQueue::new(self)?))
    }

    /// A flat buffer of zeros.
    pub(crate) fn zeroed(&self, dtype: DType, len: usize) -> Result<Buffer> {
        let op = Operator("buffer");
        let memory = GpuMemory::new(self, op, len * dtype.size_in_bytes())?;
        Buffer::on_device(Box::new(memory), dtype, len)
            .map_err(|source| OpError::Memory { op: op.0, source })
    }

    /// A tensor that is yet to be written.
    pub(crate) fn empty(&self, op: Operator, dtype: DType, shape: &[usize]) -> Result<Resident> {
        match dtype {
            DType::Bf16 => self.unwritten::<half::bf16>(op, shape),
            DType::F32 => self.unwritten::<f32>(op, shape),
            DType::F64 => self.unwritten::<f64>(op, shape),
        }
    }

    /// Words on the device. What was uploaded a moment ago is not uploaded again: the layers and
    /// passes of a micro-batch ask for the same tokens and positions.
    pub(crate) fn words(&self, op: Operator, words: &[u32]) -> Result<Resident> {
        let mut uploads = self
            .0
            .uploads
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = uploads.find(words) {
            return Ok(found);
        }
        let resident = self.unwritten::<u32>(op, &[words.len()])?;
        self.bind(op)?;
        let kept = uploads.keep(words, &resident);
        if !kept.is_empty() {
            let (target, stream) = (resident.address().0, self.0.stream.cu_stream());
            // SAFETY: the tensor has room for the words, which stay where they are until the driver,
            // which may do so after it returns, has read them.
            let copied = unsafe { result::memcpy_htod_async(target, kept, stream) };
            copied.map_err(|error| {
                uploads.forget_last();
                driver_error(op.0, format!("uploading {} words", words.len()), error)
            })?;
        }
        Ok(resident)
    }

    /// Copies `bytes` of this GPU's memory to the beginning of a tensor, which has room for them.
    pub(crate) fn copy(
        &self,
        op: Operator,
        from: Address,
        to: &Resident,
        bytes: usize,
    ) -> Result<()> {
        self.bind(op)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: addresses are of operands that were checked; both have that many bytes.
        unsafe {
            result::memcpy_dtod_async(to.address().0, from.0, bytes, self.0.stream.cu_stream())
        }
        .map_err(|error| driver_error(op.0, format!("copying {bytes} bytes"), error))
    }

    /// Makes this GPU the one that the driver's calls of this thread are about.
    pub(crate) fn bind(&self, op: Operator) -> Result<()> {
        self.0
            .stream
            .context()
            .bind_to_thread()
            .map_err(|error| driver_error(op.0, "choosing the GPU", error))
    }

    /// `bytes` of memory, as an array of `len` of something.
    pub(super) fn allocate<T: DeviceRepr>(&self, op: Operator, len: usize) -> Result<CudaSlice<T>> {
        // SAFETY: whoever asks writes before anything is read.
        unsafe { self.0.stream.alloc::<T>(len.max(1)) }.map_err(|error| {
            if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                self.out_of_memory(op, len * size_of::<T>())
            } else {
                let action = format!("allocating {} bytes", len * size_of::<T>());
                driver_error(op.0, action, error)
            }
        })
    }

    fn out_of_memory(&self, op: Operator, bytes: usize) -> OpError {
        let memory = self.memory().ok();
        OpError::OutOfMemory {
            op: op.0,
            bytes,
            free: memory.map_or(0, |memory| memory.free),
            total: self.0.facts.memory,
            held: memory.map_or(0, |memory| memory.used),
        }
    }

    /// What is used of its memory.
    pub(crate) fn memory(&self) -> Result<GpuMemoryUse> {
        use sys::CUmemPool_attribute as Attribute;
        let attribute = |which| {
            let mut value = 0_u64;
            // SAFETY: these attributes are 64-bit numbers, and the pool is the driver's own.
            unsafe {
                result::mem_pool::get_attribute(
                    self.0.pool,
                    which,
                    (&raw mut value).cast::<c_void>(),
                )
            }?;
            Ok(value as usize)
        };
        let read = || -> std::result::Result<GpuMemoryUse, DriverError> {
            let (free, _) = self.0.stream.context().mem_get_info()?;
            Ok(GpuMemoryUse {
                used: attribute(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
                peak: attribute(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
                reserved: attribute(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?,
                free,
            })
        };
        read().map_err(|error| driver_error("memory", "asking for its use", error))
    }

    fn unwritten<T: DeviceRepr + candle_core::cuda_backend::CudaDType>(
        &self,
        op: Operator,
        shape: &[usize],
    ) -> Result<Resident> {
        let slice = self.allocate::<T>(op, shape.iter().product())?;
        let storage = CudaStorage::wrap_cuda_slice(slice, self.0.device.clone());
        let tensor = Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false);
        Resident::new(self, op, "a new tensor", tensor)
    }

    /// Where the elements of a contiguous tensor of this GPU begin.
    pub(super) fn address_of(
        &self,
        op: Operator,
        operand: &'static str,
        tensor: &Tensor,
    ) -> Result<Address> {
        use cudarc::driver::DevicePtr;
        let (storage, layout) = tensor.storage_and_layout();
        let elsewhere = || OpError::Device { op: op.0, operand };
        let Storage::Cuda(storage) = &*storage else {
            return Err(elsewhere());
        };
        if storage.device.id() != self.0.device.id() {
            return Err(elsewhere());
        }
        let stream = &self.0.stream;
        macro_rules! start {
            ($($dtype:ident => $element:ty),*) => {
                match tensor.dtype() {
                    $(TensorType::$dtype => {
                        storage.as_cuda_slice::<$element>().ok().map(|slice| slice.device_ptr(stream).0)
                    })*
                    _ => None,
                }
            };
        }
        let start = start!(BF16 => half::bf16, F32 => f32, F64 => f64, U32 => u32);
        let start = start.ok_or_else(|| OpError::DType {
            op: op.0,
            operand,
            found: tensor.dtype().as_str().to_owned(),
            expected: "bf16 or f32",
        })?;
        let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
        Ok(Address(start + offset as u64))
    }
}

fn why(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{error:?}"),
    }
}

/// Has the driver keep what is freed for the next who asks: else it returns memory to the system at
/// every synchronisation, and asks for it again.
fn keep_freed_memory(stream: &CudaStream) -> std::result::Result<sys::CUmemoryPool, DriverError> {
    let mut everything = u64::MAX;
    // SAFETY: the device is the stream's; the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device())?;
        result::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut everything).cast::<c_void>(),
        )?;
        Ok(pool)
    }
}

fn facts(ordinal: usize, stream: &CudaStream) -> std::result::Result<GpuFacts, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let context = stream.context();
    let attribute = |which| context.attribute(which).map(|value| value as u32);
    let mut driver_version = 0;
    // SAFETY: writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut driver_version) }.result()?;
    Ok(GpuFacts {
        ordinal,
        name: context.name()?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: context.total_mem()?,
        shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
        driver_version: driver_version as u32,
    })
}
