//! What a run computes on, and with how many workers, where the config leaves that to the machine.

use std::{env, ffi::OsString, path::Path};

use anyhow::anyhow;
use cordee_config::{ComputePrecision, DeviceChoice, DeviceKind, Loaded, Machine, Plan};
use cordee_launch::{Placement, allowed_cpus, cpu_list};
use cordee_protocol::ExitCode;

use crate::{args::DeviceArg, failure::Failure, gpus, libraries::Places};

/// Lists the devices instead of looking for them: names separated by commas, such as `cpu,cpu`.
pub(crate) const DEVICES: &str = "CORDEE_DEVICES";

/// CUDA's own list of the GPUs that a process sees.
pub(crate) const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// For tests alone: has so many workers share each GPU.
pub(crate) const WORKERS_PER_GPU: &str = "CORDEE_TEST_WORKERS_PER_GPU";

/// Workers on a machine without GPUs.
const CPU_WORKERS: usize = 2;

/// Whether this program was built for GPUs.
const HAS_CUDA: bool = cfg!(feature = "cuda");

/// The plan of a config on this machine.
pub fn plan(loaded: &Loaded) -> Result<Plan, Failure> {
    let seen = Seen::look(loaded.config.parallel.device)?;
    let plan = loaded.plan(seen.machine()).map_err(Failure::usage)?;
    seen.check(plan.device, plan.world_size)?;
    Ok(plan)
}

/// What this machine fills in where a config that asks for `choice` says nothing.
pub(crate) fn machine(choice: DeviceChoice) -> Result<Machine, Failure> {
    Seen::look(choice).map(Seen::machine)
}

/// What `workers` that belong to no config compute on.
pub(crate) fn device(
    choice: DeviceChoice,
    precision: ComputePrecision,
    workers: usize,
) -> Result<DeviceKind, Failure> {
    let seen = Seen::look(choice)?;
    if (seen.device, precision) == (DeviceKind::Cpu, ComputePrecision::Bf16) {
        let error = anyhow!("bf16 is for GPUs, and this would compute on the CPU");
        return Err(Failure::usage(error).with_hint("take f32"));
    }
    seen.check(seen.device, workers)?;
    Ok(seen.device)
}

/// What a command computes on that has no ranks, in f32.
pub fn one_device(device: DeviceArg) -> Result<DeviceKind, Failure> {
    self::device(device.choice(), ComputePrecision::F32, 1)
}

/// How many GPUs a process that is started now would see.
pub(crate) fn visible_gpus() -> Result<usize, Failure> {
    let count = gpus::count().map_err(|why| Failure::new(ExitCode::Environment, why))?;
    Ok(visible(env::var_os(VISIBLE), count.unwrap_or(0)))
}

/// How many workers share a GPU: one, but where a test says otherwise. Neighbours by local rank do.
pub fn workers_per_gpu() -> Result<usize, Failure> {
    let Ok(text) = env::var(WORKERS_PER_GPU) else {
        return Ok(1);
    };
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Failure::usage(anyhow!(
            "{WORKERS_PER_GPU} is `{text}`: it takes a number from 1 on"
        ))),
    }
}

/// What is kept of the GPUs that a run could compute on: their driver and what they were like.
pub(crate) fn record(device: DeviceKind) -> Option<gpus::Driver> {
    match device {
        DeviceKind::Cpu => None,
        DeviceKind::Cuda => gpus::ask(&Places::of_this_process()).ok(),
    }
}

/// Where ranks run, by rank: on the processors near their GPU, with memory from there; and what was
/// decided, or why nothing was, in a line. On the CPU they are where the system puts them.
pub(crate) fn placement(
    device: DeviceKind,
    ranks: usize,
) -> Result<(Vec<Option<Placement>>, Option<String>), Failure> {
    let Some(driver) = record(device) else {
        return Ok((Vec::new(), None));
    };
    let (per_gpu, allowed) = (workers_per_gpu()?, allowed_cpus());
    // With fewer GPUs to be seen than there are, which of them a rank gets is not known here.
    if env::var_os(VISIBLE).is_some() {
        let why =
            format!("ranks run on all processors: {VISIBLE} hides which GPU each of them has");
        return Ok((Vec::new(), Some(why)));
    }
    let near = |rank: usize| {
        let place = driver.gpus.get(rank / per_gpu)?.place.as_ref()?;
        let address = format!("{place}.0");
        Some(Placement::near_device(
            Path::new("/sys"),
            &address,
            &allowed,
        ))
    };
    let found: Vec<_> = (0..ranks).map(near).collect();
    let told = found.iter().enumerate().map(|(rank, found)| match found {
        Some(Ok(placement)) => {
            let node = placement
                .memory_node
                .map_or_else(String::new, |node| format!(", memory of node {node}"));
            format!(
                "rank {rank}: processors {}{node}",
                cpu_list(&placement.cpus)
            )
        }
        Some(Err(why)) => format!("rank {rank}: {why}"),
        None => format!("rank {rank}: the driver does not tell where its GPU is"),
    });
    let told = told.collect::<Vec<_>>().join("; ");
    let placement = found.into_iter().map(|found| found.and_then(Result::ok));
    Ok((placement.collect(), Some(told)))
}

/// What the devices of ranks are called, by rank; none where they compute on the CPU.
pub(crate) fn labels(device: DeviceKind, ranks: usize) -> Result<Vec<String>, Failure> {
    let per_gpu = workers_per_gpu()?;
    Ok(match device {
        DeviceKind::Cpu => Vec::new(),
        DeviceKind::Cuda => (0..ranks)
            .map(|rank| format!("GPU {}", rank / per_gpu))
            .collect(),
    })
}

/// What there is to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    device: DeviceKind,
    /// How many there are; `None` where only starting would tell.
    count: Option<usize>,
    /// Whether the user said so.
    listed: bool,
}

impl Seen {
    /// Finds out as much as `choice` leaves open.
    fn look(choice: DeviceChoice) -> Result<Self, Failure> {
        if choice == DeviceChoice::Cuda && !HAS_CUDA {
            return Err(without_cuda("parallel.device is \"cuda\""));
        }
        if let Ok(list) = env::var(DEVICES) {
            let seen = listed(&list, HAS_CUDA)?;
            if choice.or(seen.device) == seen.device {
                return Ok(seen);
            }
        }
        let gpus = || match gpus::count() {
            Ok(count) => Ok(count.map(|count| visible(env::var_os(VISIBLE), count))),
            Err(why) => Err(Failure::new(ExitCode::Environment, why).with_hint(
                "`cordee doctor` tells more; parallel.device = \"cpu\" does without the GPUs",
            )),
        };
        let cpu = Self {
            device: DeviceKind::Cpu,
            count: None,
            listed: false,
        };
        let cuda = |count| Self {
            device: DeviceKind::Cuda,
            count,
            listed: false,
        };
        Ok(match choice {
            // The user knows that there are some; what is wrong with them the worker will tell.
            DeviceChoice::Cuda => cuda(gpus().unwrap_or(None)),
            DeviceChoice::Auto if HAS_CUDA => match gpus()? {
                None | Some(0) => cpu,
                count => cuda(count),
            },
            _ => cpu,
        })
    }

    fn machine(self) -> Machine {
        let otherwise = match self.device {
            DeviceKind::Cpu => CPU_WORKERS,
            DeviceKind::Cuda => 1,
        };
        Machine {
            device: self.device,
            // That there is none is an error of its own, with better words.
            workers: self.count.unwrap_or(otherwise).max(1),
        }
    }

    /// That each worker has a GPU.
    fn check(self, device: DeviceKind, workers: usize) -> Result<(), Failure> {
        let (DeviceKind::Cuda, Some(count), false) = (device, self.count, self.listed) else {
            return Ok(());
        };
        if count == 0 {
            let error = anyhow!("parallel.device is \"cuda\", and there is no GPU to be seen");
            return Err(
                Failure::new(ExitCode::Environment, error).with_hint(format!(
                    "`cordee doctor` tells what is there; does {VISIBLE} leave one?"
                )),
            );
        }
        if workers > count * workers_per_gpu()? {
            let error = anyhow!("{workers} workers need a GPU each, and {count} can be seen");
            return Err(Failure::usage(error).with_hint(format!(
                "set parallel.workers = {count}, or show more in {VISIBLE}"
            )));
        }
        Ok(())
    }
}

fn without_cuda(what: &str) -> Failure {
    let error = anyhow!("{what}, and this build of cordee computes on the CPU only");
    Failure::usage(error).with_hint("`cargo build --release --features cuda` makes one for GPUs")
}

fn listed(list: &str, has_cuda: bool) -> Result<Seen, Failure> {
    let devices: Vec<&str> = list.split(',').map(str::trim).collect();
    let device = match devices[0] {
        "cpu" => DeviceKind::Cpu,
        "cuda" if has_cuda => DeviceKind::Cuda,
        "cuda" => return Err(without_cuda(&format!("{DEVICES} names `cuda`"))),
        other => return Err(unknown(other)),
    };
    match devices.iter().find(|name| **name != device.name()) {
        None => Ok(Seen {
            device,
            count: Some(devices.len()),
            listed: true,
        }),
        Some(other) => Err(unknown(other)),
    }
}

fn unknown(device: &str) -> Failure {
    let error = anyhow!(
        "{DEVICES} names the device `{device}`: it takes `cpu` or `cuda`, once for each worker"
    );
    Failure::usage(error).with_hint(format!(
        "{DEVICES}=cpu,cpu starts two ranks on the CPU; which GPUs there are to see is for {VISIBLE}"
    ))
}

/// How many of `count` GPUs CUDA shows to a process: a list of numbers and identifiers, which ends
/// before the first that is none (CUDA programming guide, "CUDA environment variables").
fn visible(list: Option<OsString>, count: usize) -> usize {
    let Some(list) = list.and_then(|list| list.into_string().ok()) else {
        return count;
    };
    let is_one = |name: &&str| match name.parse::<usize>() {
        Ok(ordinal) => ordinal < count,
        Err(_) => name.starts_with("GPU-") || name.starts_with("MIG-"),
    };
    list.split(',').map(str::trim).take_while(is_one).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_counts_its_devices() {
        let seen = |list, has_cuda| listed(list, has_cuda).map(|seen| (seen.device, seen.count));
        assert_eq!(seen("cpu", false).unwrap(), (DeviceKind::Cpu, Some(1)));
        assert_eq!(
            seen("cpu, cpu,cpu", true).unwrap(),
            (DeviceKind::Cpu, Some(3))
        );
        assert_eq!(
            seen("cuda,cuda", true).unwrap(),
            (DeviceKind::Cuda, Some(2))
        );
        for (list, named) in [("cpu,cuda", "`cuda`"), ("cuda:0", "`cuda:0`"), ("", "``")] {
            let unknown = seen(list, true).unwrap_err().to_string();
            assert!(unknown.contains(named), "{unknown}");
        }
        let without = seen("cuda", false).unwrap_err().to_string();
        assert!(without.contains("the CPU only"), "{without}");
    }

    #[test]
    fn cuda_sees_what_it_is_shown() {
        let cases = [
            (None, 8),
            (Some(""), 0),
            (Some("0"), 1),
            (Some("3, 1"), 2),
            (Some("0,8,1"), 1),
            (Some("-1"), 0),
            (Some("NoDevFiles"), 0),
            (Some("GPU-8932f937,MIG-7a"), 2),
        ];
        for (list, expected) in cases {
            assert_eq!(visible(list.map(OsString::from), 8), expected, "{list:?}");
        }
    }

    #[test]
    fn gpus_decide_the_number_of_workers() {
        let seen = |count| Seen {
            device: DeviceKind::Cuda,
            count,
            listed: false,
        };
        let workers = |count| seen(count).machine().workers;
        assert_eq!([Some(4), Some(0), None].map(workers), [4, 1, 1]);
    }
}
