//! As much of CUDA's driver as the tests need: a GPU with memory and two streams.

use std::{
    any::Any,
    ffi::{c_int, c_uint, c_void},
    ops::Range,
    ptr::{self, NonNull},
    sync::{Arc, OnceLock},
};

use cordee_memory::{Buffer, DType, DeviceMemory, DeviceQueue, MemoryError};
use libloading::os::unix::Library as Object;

type Result<T> = std::result::Result<T, MemoryError>;

macro_rules! driver {
    ($($name:ident = $symbol:literal: fn($($parameter:ty),*);)*) => {
        #[derive(Debug)]
        struct Driver { $($name: unsafe extern "C" fn($($parameter),*) -> c_int,)* }

        fn driver() -> &'static Driver {
            static DRIVER: OnceLock<Driver> = OnceLock::new();
            DRIVER.get_or_init(|| {
                // SAFETY: the driver, and its functions' types as of cuda.h.
                unsafe {
                    let object = Box::leak(Box::new(Object::new("libcuda.so.1").unwrap()));
                    let driver = Driver { $($name: *object.get::<unsafe extern "C" fn($($parameter),*) -> c_int>($symbol).unwrap(),)* };
                    assert_eq!((driver.init)(0), 0);
                    driver
                }
            })
        }
    };
}

driver! {
    init = c"cuInit": fn(c_uint);
    device_count = c"cuDeviceGetCount": fn(*mut c_int);
    context = c"cuDevicePrimaryCtxRetain": fn(*mut *mut c_void, c_int);
    set_current = c"cuCtxSetCurrent": fn(*mut c_void);
    stream_create = c"cuStreamCreate": fn(*mut *mut c_void, c_uint);
    stream_query = c"cuStreamQuery": fn(*mut c_void);
    stream_synchronize = c"cuStreamSynchronize": fn(*mut c_void);
    stream_wait_event = c"cuStreamWaitEvent": fn(*mut c_void, *mut c_void, c_uint);
    event_create = c"cuEventCreate": fn(*mut *mut c_void, c_uint);
    event_record = c"cuEventRecord": fn(*mut c_void, *mut c_void);
    alloc = c"cuMemAllocAsync": fn(*mut u64, usize, *mut c_void);
    free = c"cuMemFreeAsync": fn(u64, *mut c_void);
    to_device = c"cuMemcpyHtoDAsync_v2": fn(u64, *const c_void, usize, *mut c_void);
    from_device = c"cuMemcpyDtoHAsync_v2": fn(*mut c_void, u64, usize, *mut c_void);
    fill = c"cuMemsetD8Async": fn(u64, u8, usize, *mut c_void);
}

const NON_BLOCKING: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;
const NOT_READY: c_int = 600;

/// How many GPUs there are.
pub(crate) fn count() -> usize {
    let mut count = 0;
    // SAFETY: writes one number.
    assert_eq!(unsafe { (driver().device_count)(&raw mut count) }, 0);
    count as usize
}

/// A GPU and the stream that computes.
#[derive(Clone, Debug)]
pub(crate) struct Gpu(Arc<Handles>);

#[derive(Debug)]
struct Handles {
    context: *mut c_void,
    stream: *mut c_void,
}

// SAFETY: the driver's handles are of the process, and may be used by any of its threads.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

fn expect(action: &'static str, bytes: usize, result: c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(MemoryError::Device {
            action,
            bytes,
            why: format!("the driver says {result}"),
        }),
    }
}

impl Gpu {
    pub(crate) fn open(ordinal: usize) -> Self {
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the places are ours.
        unsafe {
            assert_eq!((driver().context)(&raw mut context, ordinal as c_int), 0);
            assert_eq!((driver().set_current)(context), 0);
            assert_eq!((driver().stream_create)(&raw mut stream, NON_BLOCKING), 0);
        }
        Self(Arc::new(Handles { context, stream }))
    }

    fn bind(&self) -> Result<()> {
        // SAFETY: the context is the device's own.
        expect("choosing a GPU", 0, unsafe {
            (driver().set_current)(self.0.context)
        })
    }

    /// A buffer of zeros in its memory.
    pub(crate) fn zeroed(&self, dtype: DType, len: usize) -> Result<Buffer> {
        self.bind()?;
        let (mut address, bytes) = (0, (len * dtype.size_in_bytes()).max(1));
        // SAFETY: the place is ours.
        expect("allocating", bytes, unsafe {
            (driver().alloc)(&raw mut address, bytes, self.0.stream)
        })?;
        let memory = Memory {
            gpu: self.clone(),
            address,
        };
        Buffer::on_device(Box::new(memory), dtype, len)
    }

    pub(crate) fn queue(&self) -> Box<dyn DeviceQueue> {
        let (mut stream, mut event) = (ptr::null_mut(), ptr::null_mut());
        self.bind().unwrap();
        // SAFETY: the places are ours.
        unsafe {
            assert_eq!((driver().stream_create)(&raw mut stream, NON_BLOCKING), 0);
            assert_eq!((driver().event_create)(&raw mut event, DISABLE_TIMING), 0);
        }
        Box::new(Queue {
            gpu: self.clone(),
            stream: NonNull::new(stream).unwrap(),
            event,
        })
    }
}

#[derive(Debug)]
struct Memory {
    gpu: Gpu,
    address: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated when this was made; given back in the order of the stream.
        let freed = unsafe { (driver().free)(self.address, self.gpu.0.stream) };
        assert_eq!(freed, 0);
    }
}

impl DeviceMemory for Memory {
    fn address(&self) -> u64 {
        self.address
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let (stream, len) = (self.gpu.0.stream, bytes.len());
        if len == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: buffers ask for what is inside; the stream is waited for.
        unsafe {
            let target = self.address + offset as u64;
            expect(
                "writing",
                len,
                (driver().to_device)(target, bytes.as_ptr().cast(), len, stream),
            )?;
            expect("writing", len, (driver().stream_synchronize)(stream))
        }
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let (stream, len) = (self.gpu.0.stream, bytes.len());
        if len == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: as in `write`.
        unsafe {
            let source = self.address + offset as u64;
            expect(
                "reading",
                len,
                (driver().from_device)(bytes.as_mut_ptr().cast(), source, len, stream),
            )?;
            expect("reading", len, (driver().stream_synchronize)(stream))
        }
    }

    fn fill_zero(&self, bytes: Range<usize>) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: as in `write`.
        expect("clearing", bytes.len(), unsafe {
            (driver().fill)(
                self.address + bytes.start as u64,
                0,
                bytes.len(),
                self.gpu.0.stream,
            )
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
struct Queue {
    gpu: Gpu,
    stream: NonNull<c_void>,
    event: *mut c_void,
}

// SAFETY: as for `Handles`.
unsafe impl Send for Queue {}

impl Queue {
    fn order(&self, first: *mut c_void, then: *mut c_void) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: streams and event are alive; a wait keeps what the event was recorded for.
        unsafe {
            expect("ordering", 0, (driver().event_record)(self.event, first))?;
            expect(
                "ordering",
                0,
                (driver().stream_wait_event)(then, self.event, 0),
            )
        }
    }
}

impl DeviceQueue for Queue {
    fn pointer(&self) -> NonNull<c_void> {
        self.stream
    }

    fn follow(&self) -> Result<()> {
        self.order(self.gpu.0.stream, self.stream.as_ptr())
    }

    fn lead(&self) -> Result<()> {
        self.order(self.stream.as_ptr(), self.gpu.0.stream)
    }

    fn is_done(&self) -> Result<bool> {
        self.gpu.bind()?;
        // SAFETY: the stream is alive.
        match unsafe { (driver().stream_query)(self.stream.as_ptr()) } {
            0 => Ok(true),
            NOT_READY => Ok(false),
            other => expect("asking a queue", 0, other).map(|()| false),
        }
    }
}
