//! The report as a person reads it.

use std::fmt::Write as _;

use super::report::{Driver, Library, Machine, Report, Worker};
use crate::{
    console::bytes,
    gpus::{Gpu, Reading},
};

pub(super) fn page(report: &Report) -> String {
    let built_for = if report.cuda {
        "GPUs and the CPU"
    } else {
        "the CPU"
    };
    let mut page = format!("cordee {}, built for {built_for}\n", report.version);
    machine(&mut page, &report.machine);
    driver(&mut page, &report.driver);
    // Without GPUs nobody asks what a build for the CPU could do with them.
    if report.cuda || matches!(report.driver, Driver::Works(_)) {
        libraries(&mut page, report);
    }
    verdict(&mut page, report);
    page
}

fn line(page: &mut String, label: &str, text: &str) {
    let _ = writeln!(page, "  {label:<17} {text}");
}

fn machine(page: &mut String, machine: &Machine) {
    page.push_str("\nmachine\n");
    line(
        page,
        "host",
        &format!("{}, {}", machine.host, machine.system),
    );
    let processor = machine.processor.as_deref().unwrap_or("of unknown make");
    let cores = match machine.cores {
        Some(1) => "1 core".to_owned(),
        Some(cores) => format!("{cores} cores"),
        None => "an unknown number of cores".to_owned(),
    };
    let vectors = if machine.avx512 { ", AVX-512" } else { "" };
    line(page, "processor", &format!("{processor}, {cores}{vectors}"));
    let size = |size: Option<u64>| size.map_or_else(|| "unknown".to_owned(), bytes);
    line(page, "memory", &size(machine.memory));
    let free = size(machine.free_disk);
    line(
        page,
        "disk",
        &format!("{free} free in {}", machine.directory.display()),
    );
}

fn driver(page: &mut String, driver: &Driver) {
    page.push_str("\nGPUs\n");
    match driver {
        Driver::Missing { why } => line(page, "not known", why),
        Driver::Works(driver) => {
            let known =
                |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
            let text = format!(
                "{}, for CUDA {}",
                known(&driver.version),
                known(&driver.cuda)
            );
            line(page, "driver", &text);
            if driver.gpus.is_empty() {
                line(page, "none", "the driver works and shows no GPU");
            }
            for one in &driver.gpus {
                gpu(page, one);
            }
        }
    }
}

fn gpu(page: &mut String, gpu: &Gpu) {
    let capability = gpu
        .compute_capability
        .map_or_else(String::new, |(major, minor)| {
            format!(", compute capability {major}.{minor}")
        });
    line(
        page,
        &format!("GPU {}", gpu.ordinal),
        &format!("{}{capability}", gpu.name),
    );
    let mut facts: Vec<(&str, String)> = Vec::new();
    if let Some(total) = gpu.memory_total {
        let free = gpu.memory_free.map_or_else(|| "unknown".to_owned(), bytes);
        facts.push(("memory", format!("{free} free of {}", bytes(total))));
    }
    let clocks = [("SM", gpu.sm_clock), ("memory", gpu.memory_clock)];
    let clocks = joined(clocks.map(|(name, clock)| Some(format!("{name} {}", of(clock?, " MHz")))));
    facts.extend(clocks.map(|text| ("clocks", text)));
    let slowed = (!gpu.slowed_by.is_empty())
        .then(|| format!("held down by {}", gpu.slowed_by.join(" and by ")));
    let power = joined([
        gpu.power.map(|power| of(power, " W")),
        gpu.temperature
            .map(|degrees| format!("{degrees} degrees C")),
        slowed,
    ]);
    facts.extend(power.map(|text| ("power", text)));
    let errors = match (gpu.ecc, gpu.uncorrected_errors) {
        (Some(true), Some(0)) => Some("ECC on, no uncorrected error".to_owned()),
        (Some(true), Some(count)) => Some(format!("ECC on, {count} UNCORRECTED ERRORS")),
        (Some(true), None) => Some("ECC on".to_owned()),
        (Some(false), _) => Some("ECC off".to_owned()),
        (None, _) => None,
    };
    let mig = gpu
        .mig
        .and_then(|on| on.then(|| "divided into instances (MIG)".to_owned()));
    facts.extend(joined([errors, mig]).map(|text| ("reliability", text)));
    let pcie = gpu
        .pcie_generation
        .zip(gpu.pcie_width)
        .map(|(generation, width)| {
            format!(
                "PCIe generation {}, lanes {}",
                of(generation, ""),
                of(width, "")
            )
        });
    let nvlinks = gpu.nvlinks.map(|links| format!("{links} NVLinks up"));
    facts.extend(joined([pcie, nvlinks]).map(|text| ("links", text)));
    for (label, text) in facts {
        line(page, &format!("  {label}"), &text);
    }
}

/// `1980 of 1980 MHz`.
fn of(reading: Reading, unit: &str) -> String {
    match reading.most {
        Some(most) => format!("{} of {most}{unit}", reading.now),
        None => format!("{}{unit}", reading.now),
    }
}

fn joined<const N: usize>(parts: [Option<String>; N]) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn libraries(page: &mut String, report: &Report) {
    page.push_str("\nlibraries\n");
    if let Some(worker) = &report.worker {
        let text = match worker {
            Worker::Found { path, .. } => path.display().to_string(),
            Worker::Missing { .. } => "MISSING".to_owned(),
        };
        line(page, "cordee-worker", &text);
    }
    let mut any_missing = false;
    for library in &report.libraries {
        line(page, &library.title, &library_line(library));
        any_missing |= library.needed && library.found.is_none();
    }
    if any_missing {
        page.push_str("\nlooked in\n");
        for (path, origin) in &report.searched {
            line(page, origin, &path.display().to_string());
        }
    }
}

fn library_line(library: &Library) -> String {
    let Some((path, _)) = &library.found else {
        let missing = if library.needed {
            "MISSING"
        } else {
            "not there"
        };
        return format!("{missing}: {}, for {}", library.file, library.used_for);
    };
    let version = library.version.as_deref().unwrap_or("version unknown");
    format!("{version:<16} {}", path.display())
}

fn verdict(page: &mut String, report: &Report) {
    let problems = report.problems();
    if problems.is_empty() {
        let gpus = match &report.driver {
            Driver::Works(driver) => driver.gpus.len(),
            Driver::Missing { .. } => 0,
        };
        let unused = if gpus > 0 && !report.cuda {
            "; `cargo build --release --features cuda` makes a build that uses the GPUs"
        } else {
            ""
        };
        let _ = writeln!(page, "\nready: this build has what it needs{unused}");
        return;
    }
    page.push_str("\nnot ready\n");
    for problem in problems {
        let _ = writeln!(page, "  {}", problem.what);
        if let Some(hint) = problem.hint {
            let _ = writeln!(page, "    hint: {hint}");
        }
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::gpus;

    fn machine() -> Machine {
        Machine {
            host: "node-7".to_owned(),
            system: "Linux 6.8.0".to_owned(),
            processor: Some("AMD EPYC 9654".to_owned()),
            avx512: true,
            cores: Some(48),
            memory: Some(512 << 30),
            directory: "/work".into(),
            free_disk: Some(3 << 40),
        }
    }

    fn h100() -> Gpu {
        let reading = |now, most| {
            Some(Reading {
                now,
                most: Some(most),
            })
        };
        Gpu {
            ordinal: 0,
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            uuid: Some("GPU-1".to_owned()),
            compute_capability: Some((9, 0)),
            memory_total: Some(80 << 30),
            memory_free: Some(79 << 30),
            sm_clock: reading(345, 1980),
            memory_clock: reading(2619, 2619),
            power: reading(71, 700),
            temperature: Some(31),
            slowed_by: Vec::new(),
            ecc: Some(true),
            uncorrected_errors: Some(0),
            mig: Some(false),
            pcie_generation: reading(5, 5),
            pcie_width: reading(16, 16),
            nvlinks: Some(18),
            ..Gpu::default()
        }
    }

    fn library(file: &str, needed: bool, found: bool) -> Library {
        let known = crate::libraries::known(file).unwrap();
        Library {
            file: file.to_owned(),
            title: known.title.to_owned(),
            used_for: known.used_for,
            needed,
            version: found.then(|| "13.0.2".to_owned()),
            found: found.then(|| (format!("/usr/lib64/{file}").into(), "the loader".to_owned())),
        }
    }

    fn report(cuda: bool) -> Report {
        let driver = gpus::Driver {
            library: "/usr/lib64/libnvidia-ml.so.1".into(),
            version: Some("580.95.05".to_owned()),
            cuda: Some("13.0".to_owned()),
            gpus: vec![h100()],
        };
        Report {
            version: "1.2.3",
            cuda,
            machine: machine(),
            driver: Driver::Works(driver),
            worker: cuda.then(|| Worker::Found {
                path: "/opt/cordee/cordee-worker".into(),
                needs: vec!["libcuda.so.1".to_owned(), "libcublas.so.13".to_owned()],
            }),
            libraries: vec![
                library("libcuda.so.1", cuda, true),
                library("libcublas.so.13", cuda, true),
                library("libnccl.so.2", false, false),
            ],
            searched: vec![("/usr/lib64".into(), "the loader".to_owned())],
        }
    }

    #[test]
    fn a_machine_with_all_that_is_needed() {
        assert_snapshot!(page(&report(true)));
    }

    #[test]
    fn a_machine_without_a_driver() {
        let mut report = report(true);
        report.driver = Driver::Missing {
            why: "there is no libnvidia-ml.so.1".to_owned(),
        };
        for library in &mut report.libraries {
            library.found = None;
        }
        report.machine.processor = None;
        report.machine.memory = None;
        assert_snapshot!(page(&report));
        assert_eq!(report.json()["passed"], false);
    }

    #[test]
    fn a_build_for_the_cpu_needs_nothing() {
        let mut report = report(false);
        assert_snapshot!(page(&report));
        report.driver = Driver::Missing {
            why: "there is no libnvidia-ml.so.1".to_owned(),
        };
        assert_snapshot!(page(&report));
        assert_eq!(report.json()["passed"], true);
    }

    #[test]
    fn what_a_gpu_suffers_from_is_told() {
        let mut report = report(true);
        let Driver::Works(driver) = &mut report.driver else {
            panic!("it works");
        };
        driver.cuda = Some("12.4".to_owned());
        let gpu = &mut driver.gpus[0];
        gpu.uncorrected_errors = Some(3);
        gpu.mig = Some(true);
        gpu.slowed_by = vec!["heat", "its power limit"];
        gpu.nvlinks = None;
        gpu.sm_clock = None;
        let text = page(&report);
        for told in [
            "ECC on, 3 UNCORRECTED ERRORS, divided into instances (MIG)",
            "held down by heat and by its power limit",
            "the driver offers CUDA 12, and this build is for CUDA 13",
        ] {
            assert!(text.contains(told), "{text}");
        }
    }
}
