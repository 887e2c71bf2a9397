//! What ranks measure of a machine, for `cordee smoke` and `cordee bench comm`.

use std::time::Duration;

use cordee::{CollectivesTask, SmokeTask};
use cordee_comm::ProcessGroup;
use cordee_memory::DType;
use cordee_protocol::{Check, CheckReport, Collective, ExitCode, Finding, WorkerMessage};
use cordee_smoke::{
    Collectives, DeviceBench, Memory, SmokeError, host_probes, measure_collectives, run_probes,
};
use cordee_train::{Compute, TrainError};

use super::worker::Messages;

/// Bytes of what is only checked: a few shards and a part of one, and what takes several pieces.
const CHECKED: [usize; 3] = [4_000, 256 << 10, 3 << 20];

/// Bytes of the sums that are timed, on the host and between GPUs.
const TIMED: [usize; 2] = [64 << 20, 1 << 30];

/// How long sums are timed.
const TIME: Duration = Duration::from_millis(500);

/// Looks at everything but devices.
pub(super) fn host(task: &SmokeTask, messages: &Messages) -> ExitCode {
    let probes = host_probes(&task.dir, task.storage_bytes);
    run_probes(probes, |check| task.deadline(check), &mut |report| {
        messages.send(&WorkerMessage::Check(report));
    });
    ExitCode::Done
}

/// Looks at the device of one rank, whatever becomes of those of the others.
pub(super) fn device(
    rank: usize,
    compute: anyhow::Result<Compute>,
    messages: &Messages,
) -> ExitCode {
    let tell = |of: &str, check, finding| {
        let of = Some(of.to_owned());
        messages.send(&WorkerMessage::Check(CheckReport { check, of, finding }));
    };
    let compute = match compute {
        Ok(compute) => compute,
        Err(error) => {
            let of = format!("GPU {rank}");
            for check in Check::OF_GPU {
                let why = match check {
                    Check::Products => format!("{error:#}"),
                    _ => "it cannot be opened".to_owned(),
                };
                let finding = match check {
                    Check::Products => Finding::Broken { why },
                    _ => Finding::Unknown { why },
                };
                tell(&of, check, finding);
            }
            return ExitCode::Done;
        }
    };
    let on_gpu = compute.device.facts().is_some();
    let of = format!("{} {rank}", if on_gpu { "GPU" } else { "rank" });
    let bench = DeviceBench::of(&compute.device);
    let checks = if on_gpu {
        &Check::OF_GPU[..]
    } else {
        &Check::OF_PROCESSORS[..]
    };
    for check in checks {
        let finding = match bench.measure(&compute.device, *check) {
            Ok(value) => Finding::measured(value),
            Err(error) => Finding::Unknown {
                why: error.to_string(),
            },
        };
        tell(&of, *check, finding);
    }
    ExitCode::Done
}

/// Looks at what ranks do together.
pub(super) fn links(
    compute: &Compute,
    group: &mut dyn ProcessGroup,
    messages: &Messages,
) -> Result<ExitCode, TrainError> {
    let on_gpu = compute.device.facts().is_some();
    let ([sums, all_reduce], bytes) = if on_gpu {
        (Check::OF_GPU_LINKS, TIMED[1])
    } else {
        (Check::OF_HOST_LINKS, TIMED[0])
    };
    let rank = group.rank();
    let tell = |check, finding| {
        let report = CheckReport {
            check,
            of: None,
            finding,
        };
        if rank == 0 {
            messages.send(&WorkerMessage::Check(report));
        }
    };
    let mut measure = |operations: &[Collective], sizes: &[usize], budget| {
        let asked = Collectives {
            operations,
            sizes,
            dtype: DType::F32,
            device: &compute.device,
            memory: Memory::Training,
            budget,
        };
        let mut reports = Vec::new();
        measure_collectives(group, &asked, &mut |report| reports.push(report))?;
        Ok(reports)
    };
    let checked = measure(&Collective::ALL, &CHECKED, Duration::ZERO).map_err(train_error)?;
    let wrong: u64 = checked.iter().map(|report| report.wrong).sum();
    let world = checked[0].world;
    let detail = format!("{} collectives over {world} ranks", 2 * checked.len());
    tell(sums, Finding::with_detail(wrong as f64, detail));

    let timed = measure(&[Collective::AllReduce], &[bytes], TIME).map_err(train_error)?;
    let report = &timed[0];
    tell(
        all_reduce,
        if report.wrong > 0 {
            let why = format!("{} numbers of the sums are wrong", report.wrong);
            Finding::Broken { why }
        } else {
            let detail = format!("{} MiB over {world} ranks", report.bytes >> 20);
            Finding::with_detail(report.busbw_gbs, detail)
        },
    );
    Ok(ExitCode::Done)
}

/// Measures collectives as they are asked for.
pub(super) fn collectives(
    task: &CollectivesTask,
    compute: &Compute,
    group: &mut dyn ProcessGroup,
    messages: &Messages,
) -> Result<ExitCode, TrainError> {
    let asked = Collectives {
        operations: &task.operations,
        sizes: &task.sizes,
        dtype: compute.numbers,
        device: &compute.device,
        memory: if task.private {
            Memory::Private
        } else {
            Memory::Training
        },
        budget: Duration::from_secs_f64(task.seconds),
    };
    let rank = group.rank();
    measure_collectives(group, &asked, &mut |report| {
        if rank == 0 {
            messages.send(&WorkerMessage::Collective(report));
        }
    })
    .map_err(train_error)?;
    Ok(ExitCode::Done)
}

fn train_error(error: SmokeError) -> TrainError {
    match error {
        SmokeError::Comm(error) => error.into(),
        SmokeError::Memory(error) => error.into(),
        SmokeError::Op(error) => error.into(),
    }
}
