//! NVIDIA GPUs: opening one, its memory, and kernels that are compiled where they run.
//!
//! All work goes to one stream of our own, in order; nothing here waits for it but reading back.
//! Memory comes from the driver's pool, which keeps what was freed: after the first step nothing is
//! asked of the system. candle's event tracking is off, so a tensor that another stream reads must
//! outlive that stream's work: whoever makes another stream ([`queue`]) sees to it.
//!
//! Each operator's launches are in the `cuda.rs` of its folder, its kernels in `kernels.cu`.

#![expect(
    unsafe_code,
    reason = "calls of the driver and launches of kernels, which take addresses"
)]

mod gpu;
mod kernel;
mod memory;
mod module;
pub(crate) mod product;
mod queue;
mod resident;
pub(crate) mod rows;
mod words;

pub(crate) use gpu::Gpu;
pub(crate) use kernel::{Arg, Grid, Kernel};
pub(crate) use module::Source;
pub(crate) use resident::{Address, Resident, Rows};
pub(crate) use rows::{Blocks, Gated, RowVector, Team};

use cudarc::driver::DriverError;

use crate::error::OpError;

/// An error of the driver, on behalf of an operator.
pub(crate) fn driver_error(
    op: &'static str,
    action: impl Into<String>,
    error: DriverError,
) -> OpError {
    let name = error.error_name().map_or_else(
        |_| "unknown error".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    let text = error.error_string().map_or_else(
        |_| String::new(),
        |text| format!(" ({})", text.to_string_lossy()),
    );
    OpError::Cuda {
        op,
        action: action.into(),
        why: format!("{name}{text}"),
    }
}
