//! What the driver tells of the GPUs, as findings.

use cordee_protocol::{Check, CheckReport, Finding};

use crate::gpus::{Driver, Gpu, xid::Xid};

/// Of each GPU what can be read off; `xids` are of all of them.
pub(super) fn findings(driver: &Driver, xids: &Result<Vec<Xid>, String>) -> Vec<CheckReport> {
    let alone = driver.gpus.len() == 1;
    let of_one = |gpu: &Gpu| {
        let count = |number: Option<u64>| known(number.map(|it| it as f64));
        let reasons = if gpu.slowed_by.is_empty() {
            Finding::measured(0.0)
        } else {
            let by = format!("by {}", gpu.slowed_by.join(" and by "));
            Finding::with_detail(gpu.slowed_by.len() as f64, by)
        };
        let in_use = gpu.memory_total.zip(gpu.memory_free);
        let in_use = in_use.map(|(total, free)| total.saturating_sub(free) as f64);
        let lanes = gpu.pcie_width.and_then(|width| {
            let most = width.most?;
            let missing = f64::from(most.saturating_sub(width.now));
            Some(Finding::with_detail(
                missing,
                format!("{} of {most}", width.now),
            ))
        });
        let found = [
            (Check::GpuUncorrectedErrors, count(gpu.uncorrected_errors)),
            (Check::GpuCorrectedErrors, count(gpu.corrected_errors)),
            (Check::GpuRemappedRows, count(gpu.bad_rows)),
            (Check::GpuXid, xid(gpu, xids)),
            (Check::GpuThrottle, reasons),
            (Check::GpuTemperature, known(gpu.temperature.map(f64::from))),
            (Check::GpuMemoryInUse, known(in_use)),
            (Check::GpuLinksDown, links(gpu, alone)),
            (Check::GpuLanesMissing, lanes.unwrap_or_else(untold)),
        ];
        found.map(|(check, finding)| CheckReport {
            check,
            of: Some(format!("GPU {}", gpu.ordinal)),
            finding,
        })
    };
    driver.gpus.iter().flat_map(of_one).collect()
}

fn untold() -> Finding {
    Finding::Unknown {
        why: "the driver does not tell".to_owned(),
    }
}

fn known(value: Option<f64>) -> Finding {
    value.map_or_else(untold, Finding::measured)
}

fn links(gpu: &Gpu, alone: bool) -> Finding {
    match (gpu.nvlinks, gpu.nvlinks_down) {
        (None, _) | (_, None) => Finding::with_detail(0.0, "it has none"),
        // A GPU that was given to a virtual machine by itself has links that lead nowhere.
        (Some(0), _) if alone => Finding::with_detail(0.0, "none is up, and there is no other GPU"),
        (Some(up), Some(down)) => {
            Finding::with_detail(f64::from(down), format!("of {}", up + down))
        }
    }
}

fn xid(gpu: &Gpu, xids: &Result<Vec<Xid>, String>) -> Finding {
    let xids = match xids {
        Ok(xids) => xids,
        Err(why) => return Finding::Unknown { why: why.clone() },
    };
    let own: Vec<String> = xids
        .iter()
        .filter(|xid| gpu.place.as_ref().is_none_or(|place| *place == xid.place))
        .map(|xid| xid.number.to_string())
        .collect();
    match own.len() {
        0 => Finding::measured(0.0),
        count => Finding::with_detail(count as f64, format!("Xid {}", own.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::Reading;

    fn gpu(ordinal: u32) -> Gpu {
        Gpu {
            ordinal,
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_total: Some(80 << 30),
            memory_free: Some(79 << 30),
            temperature: Some(31),
            uncorrected_errors: Some(0),
            pcie_width: Some(Reading {
                now: 8,
                most: Some(16),
            }),
            nvlinks: Some(17),
            nvlinks_down: Some(1),
            place: Some(format!("0000:1{ordinal}:00")),
            ..Gpu::default()
        }
    }

    fn of(reports: &[CheckReport], check: Check, gpu: &str) -> Finding {
        let mut found = reports
            .iter()
            .filter(|it| it.check == check && it.of.as_deref() == Some(gpu));
        found.next().expect("it is there").finding.clone()
    }

    #[test]
    fn what_a_driver_tells_is_found_and_what_it_does_not_is_unknown() {
        let driver = Driver {
            library: "libnvidia-ml.so.1".into(),
            version: None,
            cuda: None,
            gpus: vec![gpu(0), gpu(1)],
        };
        let lost = Xid {
            place: "0000:11:00".to_owned(),
            number: 79,
        };
        let found = findings(&driver, &Ok(vec![lost]));
        assert_eq!(
            of(&found, Check::GpuXid, "GPU 0"),
            Finding::measured(0.0),
            "of another"
        );
        assert_eq!(
            of(&found, Check::GpuXid, "GPU 1"),
            Finding::with_detail(1.0, "Xid 79")
        );
        assert_eq!(
            of(&found, Check::GpuLanesMissing, "GPU 0"),
            Finding::with_detail(8.0, "8 of 16")
        );
        assert_eq!(
            of(&found, Check::GpuLinksDown, "GPU 1"),
            Finding::with_detail(1.0, "of 18")
        );
        assert_eq!(
            of(&found, Check::GpuMemoryInUse, "GPU 0"),
            Finding::measured(f64::from(1 << 30))
        );
        for check in [Check::GpuRemappedRows, Check::GpuCorrectedErrors] {
            assert_eq!(of(&found, check, "GPU 0"), untold());
        }
        let unread = findings(&driver, &Err("/dev/kmsg: not permitted".to_owned()));
        let Finding::Unknown { why } = of(&unread, Check::GpuXid, "GPU 0") else {
            panic!("nobody knows");
        };
        assert!(why.contains("kmsg"), "{why}");
    }
}
