//! Each fact of a GPU, asked for on its own: what a GPU, its driver or its container withholds is
//! absent, and the rest is told.

use nvml_wrapper::{
    Device, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    enums::device::SampleValue,
    error::NvmlError,
    structs::device::FieldId,
    sys_exports::field_id::{NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING},
};

use super::{Driver, Gpu, Reading, xid};

/// Most links of a GPU (`NVML_NVLINK_MAX_LINKS`).
const MOST_LINKS: u32 = 18;

/// Reasons that are nobody's choice and no sign of rest.
const SLOWED: [(ThrottleReasons, &str); 5] = [
    (ThrottleReasons::SW_POWER_CAP, "its power limit"),
    (ThrottleReasons::HW_SLOWDOWN, "its hardware"),
    (
        ThrottleReasons::SW_THERMAL_SLOWDOWN,
        "heat, says the driver",
    ),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "heat"),
    (
        ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
        "the machine's power supply",
    ),
];

/// All but where the library is.
pub(super) fn driver(nvml: &Nvml) -> Driver {
    let count = nvml.device_count().unwrap_or(0);
    let cuda = nvml.sys_cuda_driver_version().ok();
    Driver {
        library: std::path::PathBuf::new(),
        version: nvml.sys_driver_version().ok(),
        cuda: cuda.map(|version| format!("{}.{}", version / 1000, version % 1000 / 10)),
        gpus: (0..count)
            .filter_map(|ordinal| Some(gpu(ordinal, &nvml.device_by_index(ordinal).ok()?)))
            .collect(),
    }
}

fn gpu(ordinal: u32, device: &Device<'_>) -> Gpu {
    let memory = device.memory_info().ok();
    let capability = device.cuda_compute_capability().ok();
    let links = links(device);
    let clock =
        |which: fn() -> Clock| reading(device.clock_info(which()), device.max_clock_info(which()));
    let watts = |milliwatts: Result<u32, NvmlError>| milliwatts.map(|it| (it + 500) / 1000);
    Gpu {
        ordinal,
        name: device
            .name()
            .unwrap_or_else(|error| format!("a GPU without a name ({error})")),
        uuid: device.uuid().ok(),
        compute_capability: capability.map(|it| (it.major, it.minor)),
        memory_total: memory.as_ref().map(|memory| memory.total),
        memory_free: memory.map(|memory| memory.free),
        sm_clock: clock(|| Clock::SM),
        memory_clock: clock(|| Clock::Memory),
        power: reading(
            watts(device.power_usage()),
            watts(device.enforced_power_limit()),
        ),
        temperature: device.temperature(TemperatureSensor::Gpu).ok(),
        slowed_by: slowed_by(device),
        ecc: device.is_ecc_enabled().ok().map(|it| it.currently_enabled),
        uncorrected_errors: device
            .total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
            .ok(),
        corrected_errors: device
            .total_ecc_errors(MemoryError::Corrected, EccCounter::Aggregate)
            .ok(),
        bad_rows: bad_rows(device),
        mig: device.mig_mode().ok().map(|mode| mode.current == 1),
        pcie_generation: reading(device.current_pcie_link_gen(), device.max_pcie_link_gen()),
        pcie_width: reading(
            device.current_pcie_link_width(),
            device.max_pcie_link_width(),
        ),
        nvlinks: links.map(|(up, _)| up),
        nvlinks_down: links.map(|(_, down)| down),
        place: device.pci_info().ok().map(|pci| xid::place(&pci.bus_id)),
    }
}

fn reading(now: Result<u32, NvmlError>, most: Result<u32, NvmlError>) -> Option<Reading> {
    Some(Reading {
        now: now.ok()?,
        most: most.ok(),
    })
}

fn slowed_by(device: &Device<'_>) -> Vec<&'static str> {
    let Ok(reasons) = device.current_throttle_reasons() else {
        return Vec::new();
    };
    SLOWED
        .iter()
        .filter(|(reason, _)| reasons.contains(*reason))
        .map(|(_, words)| *words)
        .collect()
}

/// How many links are up and down; `None` of a GPU that has none.
fn links(device: &Device<'_>) -> Option<(u32, u32)> {
    let states: Vec<bool> = (0..MOST_LINKS)
        .map_while(|link| device.link_wrapper_for(link).is_active().ok())
        .collect();
    let up = states.iter().filter(|active| **active).count();
    (!states.is_empty()).then(|| (up as u32, (states.len() - up) as u32))
}

/// Whether replacements of rows are pending, and whether one failed: the sum of both.
fn bad_rows(device: &Device<'_>) -> Option<u64> {
    let fields = [NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_FAILURE].map(FieldId);
    let told = device.field_values_for(&fields).ok()?;
    let numbers = told.into_iter().map(|field| match field.ok()?.value.ok()? {
        SampleValue::U32(number) => Some(u64::from(number)),
        SampleValue::U64(number) => Some(number),
        SampleValue::I64(number) => u64::try_from(number).ok(),
        SampleValue::F64(_) => None,
    });
    numbers.sum()
}
