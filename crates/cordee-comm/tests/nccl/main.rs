//! The group over NCCL, tested from outside on GPUs or on what stands in for them, by way of the driver
//! alone. `CORDEE_TEST_COLLECTIVES` names the libnccl.so.2 to use; without it there is nothing to test.
//! Ranks are threads with a GPU each, or processes where one is killed or told to go wrong.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "these are tests, and so are their parts"
)]

mod driver;
mod faults;
mod processes;
mod threads;

use std::{env, path::PathBuf, time::Duration};

use nccl_sys::Library;

/// Long enough for a loaded machine; only a bug waits that long.
const PATIENCE: Duration = Duration::from_mins(1);

/// Much less than anybody's patience: an error that was told, not waited for.
const AT_ONCE: Duration = Duration::from_secs(15);

/// The library to test with, and how many GPUs there are, two at least.
fn equipment() -> Option<(Library, usize)> {
    let Some(path) = env::var_os("CORDEE_TEST_COLLECTIVES") else {
        println!("skipped: CORDEE_TEST_COLLECTIVES does not name a libnccl.so.2");
        return None;
    };
    let library = Library::open(&[PathBuf::from(path)]).unwrap();
    let gpus = driver::count();
    assert!(gpus >= 2, "these tests take two GPUs, and there are {gpus}");
    Some((library, gpus))
}
