//! Launching kernels.

use std::ffi::c_void;

use cudarc::driver::{CudaFunction, result};

use super::{Address, Gpu, Resident, driver_error};
use crate::{error::Result, operand::Operator};

/// A kernel that can be launched.
pub(crate) struct Kernel {
    gpu: Gpu,
    op: Operator,
    function: CudaFunction,
}

/// One parameter of a kernel, as the 8 bytes that it is read from; a shorter one is read from the
/// lower bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arg(u64);

impl From<Address> for Arg {
    fn from(address: Address) -> Self {
        Self(address.get())
    }
}

impl From<&Resident> for Arg {
    fn from(resident: &Resident) -> Self {
        resident.address().into()
    }
}

impl From<Option<Address>> for Arg {
    /// Null, where there is none.
    fn from(address: Option<Address>) -> Self {
        Self(address.map_or(0, Address::get))
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self(u64::from(value))
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()))
    }
}

impl From<f64> for Arg {
    fn from(value: f64) -> Self {
        Self(value.to_bits())
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks in x, y and z; none of nothing.
    pub(crate) blocks: [usize; 3],
    /// Threads of a block, in x.
    pub(crate) threads: usize,
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: usize,
}

impl Grid {
    /// A row of blocks without dynamic shared memory.
    pub(crate) fn new(blocks: usize, threads: usize) -> Self {
        Self {
            blocks: [blocks, 1, 1],
            threads,
            shared: 0,
        }
    }
}

/// Most blocks in y and z.
const MOST_BLOCKS: usize = 65_535;

impl Kernel {
    pub(super) fn new(gpu: &Gpu, op: Operator, function: CudaFunction) -> Self {
        Self {
            gpu: gpu.clone(),
            op,
            function,
        }
    }

    /// Asks for a launch; nothing is waited for. A grid of no blocks is nothing to do.
    ///
    /// # Safety
    ///
    /// `args` are what the kernel takes, in its order and of its types, and every address among them
    /// has as many elements behind it as the kernel touches under this grid.
    pub(crate) unsafe fn launch(&self, grid: Grid, args: &[Arg]) -> Result<()> {
        let [x, y, z] = grid.blocks;
        if x * y * z == 0 {
            return Ok(());
        }
        assert!(
            i32::try_from(x).is_ok() && y <= MOST_BLOCKS && z <= MOST_BLOCKS,
            "{}: a grid of {x} x {y} x {z} blocks is more than a GPU takes",
            self.op.0
        );
        let mut slots: Vec<u64> = args.iter().map(|arg| arg.0).collect();
        let mut parameters: Vec<*mut c_void> = slots
            .iter_mut()
            .map(|slot| std::ptr::from_mut(slot).cast())
            .collect();
        self.gpu.bind(self.op)?;
        // SAFETY: the slots outlive the call, which copies them; the rest is the caller's word.
        unsafe {
            result::launch_kernel(
                self.function.cu_function(),
                (x as u32, y as u32, z as u32),
                (grid.threads as u32, 1, 1),
                grid.shared as u32,
                self.gpu.stream().cu_stream(),
                &mut parameters,
            )
        }
        .map_err(|error| driver_error(self.op.0, format!("launching {grid:?}"), error))
    }
}
