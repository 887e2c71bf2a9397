//! Which devices a run gets, one rank each, where the config names no number of workers.

use std::env;

use anyhow::anyhow;

use crate::failure::Failure;

/// Lists the devices instead of looking for them: names separated by commas, such as `cpu,cpu`.
pub(crate) const DEVICES: &str = "CORDEE_DEVICES";

/// Ranks on a machine without GPUs.
const CPU_WORKERS: usize = 2;

/// Ranks for a config that names no number.
pub fn default_workers() -> Result<usize, Failure> {
    match env::var(DEVICES) {
        Err(_) => Ok(CPU_WORKERS),
        Ok(list) => listed(&list),
    }
}

fn listed(list: &str) -> Result<usize, Failure> {
    let devices: Vec<&str> = list.split(',').map(str::trim).collect();
    match devices.iter().find(|device| **device != "cpu") {
        None => Ok(devices.len()),
        Some(device) => {
            let error =
                anyhow!("{DEVICES} names the device `{device}`, and this build knows `cpu` only");
            Err(Failure::usage(error)
                .with_hint(format!("{DEVICES}=cpu,cpu starts two ranks on the CPU")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_counts_its_devices() {
        assert_eq!(listed("cpu").unwrap(), 1);
        assert_eq!(listed("cpu, cpu,cpu").unwrap(), 3);
        let unknown = listed("cpu,cuda:0").unwrap_err().to_string();
        assert!(unknown.contains("`cuda:0`"), "{unknown}");
        assert!(listed("").is_err());
    }
}
