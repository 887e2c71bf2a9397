//! The GPUs of this machine, as NVIDIA's management library (NVML) tells of them. It is opened at run
//! time: where there is no driver there is nothing to open, and that is an answer too.

mod read;
pub(crate) mod xid;

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use cordee_config::DeviceKind;
use cordee_launch::StopRequests;
use nvml_wrapper::{Nvml, error::NvmlError};
use serde::Serialize;

use crate::{console::bytes, libraries::Places};

/// The file of the management library, which comes with the driver.
pub(crate) const LIBRARY: &str = "libnvidia-ml.so.1";

/// A driver that is stuck answers never; one that sleeps, after some seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the driver tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Driver {
    /// Where the management library is.
    pub(crate) library: PathBuf,
    /// Its version, such as `580.95.05`.
    pub(crate) version: Option<String>,
    /// The newest CUDA that it offers, such as `13.0`.
    pub(crate) cuda: Option<String>,
    pub(crate) gpus: Vec<Gpu>,
}

/// A GPU. What it does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Gpu {
    pub(crate) ordinal: u32,
    pub(crate) name: String,
    pub(crate) uuid: Option<String>,
    /// Major and minor.
    pub(crate) compute_capability: Option<(i32, i32)>,
    /// Bytes.
    pub(crate) memory_total: Option<u64>,
    /// Bytes that nobody uses.
    pub(crate) memory_free: Option<u64>,
    /// MHz, of the multiprocessors.
    pub(crate) sm_clock: Option<Reading>,
    /// MHz.
    pub(crate) memory_clock: Option<Reading>,
    /// Watts; the most is the limit that is in force.
    pub(crate) power: Option<Reading>,
    /// Degrees Celsius.
    pub(crate) temperature: Option<u32>,
    /// Why clocks are held down, if they are.
    pub(crate) slowed_by: Vec<&'static str>,
    /// Whether memory corrects its errors.
    pub(crate) ecc: Option<bool>,
    /// Errors that it could not correct since the driver was loaded.
    pub(crate) uncorrected_errors: Option<u64>,
    /// Errors that it corrected in its life.
    pub(crate) corrected_errors: Option<u64>,
    /// Kinds of rows of memory that wait for a reset to be replaced, or could not be.
    pub(crate) bad_rows: Option<u64>,
    /// Whether it is divided into instances.
    pub(crate) mig: Option<bool>,
    /// Generation of PCI Express.
    pub(crate) pcie_generation: Option<Reading>,
    /// Lanes of PCI Express.
    pub(crate) pcie_width: Option<Reading>,
    /// Links to other GPUs that are up.
    pub(crate) nvlinks: Option<u32>,
    /// Links that are down.
    pub(crate) nvlinks_down: Option<u32>,
    /// Where it is, as `0000:18:00`.
    pub(crate) place: Option<String>,
}

/// A number now, and the most it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Reading {
    pub(crate) now: u32,
    pub(crate) most: Option<u32>,
}

/// Why there is nothing to tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoDriver {
    #[error("there is no {LIBRARY}, which comes with NVIDIA's driver")]
    NotFound,
    #[error("the driver is not loaded, says {path}: this machine has no GPU, or the driver does not fit the kernel", path = path.display())]
    NotLoaded { path: PathBuf },
    #[error("{path} does not work: {why}", path = path.display())]
    Refused { path: PathBuf, why: String },
    #[error("{path} did not answer in {} seconds: the driver is stuck", PATIENCE.as_secs(), path = path.display())]
    Silent { path: PathBuf },
}

/// Asks the driver for all it tells.
pub(crate) fn ask(places: &Places) -> Result<Driver, NoDriver> {
    let found = places.search().find(LIBRARY).ok_or(NoDriver::NotFound)?;
    patiently(found.path, |path, nvml| Driver {
        library: path.to_owned(),
        ..read::driver(nvml)
    })
}

/// How many GPUs there are; `None` where there is no way to ask. An error where there are some,
/// perhaps, and the driver does not work.
pub(crate) fn count() -> Result<Option<usize>, NoDriver> {
    let Some(found) = Places::of_this_process().search().find(LIBRARY) else {
        return Ok(None);
    };
    let path = found.path.clone();
    match patiently(found.path, |_, nvml| nvml.device_count()) {
        Ok(Ok(count)) => Ok(Some(count as usize)),
        Ok(Err(error)) => Err(NoDriver::Refused {
            path,
            why: error.to_string(),
        }),
        // As on login nodes, which have the files and no GPU.
        Err(NoDriver::NotLoaded { .. }) => Ok(Some(0)),
        Err(other) => Err(other),
    }
}

/// Bytes of memory of the GPU that has the least; `None` where there is none, or no way to ask.
pub fn memory() -> Option<u64> {
    let driver = ask(&Places::of_this_process()).ok()?;
    driver.gpus.iter().filter_map(|gpu| gpu.memory_total).min()
}

/// How much memory of each GPU was in use before a run's ranks started.
#[derive(Debug)]
pub(crate) struct MemoryInUse(Option<Vec<u64>>);

/// How long the memory of processes that are gone may take to be free, and how much of it counts as
/// nothing: what `ft_launcher` of NVIDIA's resiliency extension allows.
const RECLAIM_PATIENCE: Duration = Duration::from_secs(50);
const RECLAIM_TOLERANCE: u64 = 512 << 20;

impl MemoryInUse {
    /// Of now; nothing where ranks compute on the CPU, or the driver does not tell.
    pub(crate) fn of(device: DeviceKind) -> Self {
        Self(match device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda => in_use(),
        })
    }

    /// Waits until no more is in use than before, or somebody asks to stop. What to tell if it stays so,
    /// else nothing.
    pub(crate) fn wait(&self, stop: &StopRequests) -> Option<String> {
        let before = self.0.as_ref()?;
        let started = Instant::now();
        loop {
            let now = in_use()?;
            let held = before
                .iter()
                .zip(&now)
                .position(|(before, now)| *now > before + RECLAIM_TOLERANCE);
            let gpu = held.filter(|_| stop.count() == 0)?;
            if started.elapsed() > RECLAIM_PATIENCE {
                return Some(format!(
                    "GPU {gpu} has {} in use, {} more than before the run: who holds it is told by nvidia-smi",
                    bytes(now[gpu]),
                    bytes(now[gpu] - before[gpu]),
                ));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

fn in_use() -> Option<Vec<u64>> {
    let driver = ask(&Places::of_this_process()).ok()?;
    let used = |gpu: &Gpu| gpu.memory_total?.checked_sub(gpu.memory_free?);
    driver.gpus.iter().map(used).collect()
}

/// Does something with the library on a thread of its own, and waits no longer than is sensible.
fn patiently<T: Send + 'static>(
    path: PathBuf,
    ask: impl FnOnce(&Path, &Nvml) -> T + Send + 'static,
) -> Result<T, NoDriver> {
    let (answer, answered) = channel();
    let library = path.clone();
    thread::spawn(move || {
        let told = Nvml::builder()
            .lib_path(library.as_os_str())
            .init()
            .map(|nvml| ask(&library, &nvml))
            .map_err(|error| match error {
                NvmlError::DriverNotLoaded => NoDriver::NotLoaded { path: library },
                other => NoDriver::Refused {
                    path: library,
                    why: other.to_string(),
                },
            });
        let _ = answer.send(told);
    });
    match answered.recv_timeout(PATIENCE) {
        Ok(Ok(told)) => Ok(told),
        Ok(Err(why)) => Err(why),
        Err(RecvTimeoutError::Timeout) => Err(NoDriver::Silent { path }),
        Err(RecvTimeoutError::Disconnected) => {
            let why = "asking it panicked".to_owned();
            Err(NoDriver::Refused { path, why })
        }
    }
}
