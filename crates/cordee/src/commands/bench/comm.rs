//! `cordee bench comm`: how fast ranks exchange memory, and whether what arrives is right.

use cordee_config::ParallelConfig;
use cordee_protocol::{CollectiveReport, ExitCode, WorkerMessage};

use crate::{
    args::BenchCommArgs,
    commands::{played, ranks},
    console::{Console, bytes},
    devices,
    failure::Failure,
    job::{CollectivesTask, Job, Task, threads_per_rank},
};

const TITLE: &str = "operation             bytes  ranks           ms      p90 ms    algbw GB/s  busbw GB/s   wrong\n";

pub(super) fn run(args: &BenchCommArgs) -> Result<u8, Failure> {
    let workers = match args.workers {
        Some(workers) => workers,
        None => devices::machine(args.device.choice())?.workers,
    };
    // The precision of a job is that of computing, which the CPU does in f32; memory can be moved in any.
    let job = Job {
        world_size: workers,
        across: played::across(workers, args.machines)?,
        threads: threads_per_rank(workers),
        timeout: ParallelConfig::default().timeout,
        device: devices::device(
            args.device.choice(),
            cordee_config::ComputePrecision::F32,
            workers,
        )?,
        precision: args.dtype.precision().into(),
        task: Task::Collectives(CollectivesTask {
            operations: args.operations.clone(),
            sizes: args.sizes.0.clone(),
            private: args.private,
            seconds: args.seconds,
        }),
    };
    if !args.json {
        Console::print_data(TITLE);
    }
    let mut wrong = false;
    ranks::listen(&job, "bench", &mut |message| {
        if let WorkerMessage::Collective(report) = message {
            wrong |= report.wrong > 0;
            Console::print_data(&if args.json {
                line(&report)
            } else {
                row(&report)
            });
        }
    })?;
    Ok(if wrong {
        ExitCode::Failed.code()
    } else {
        ExitCode::Done.code()
    })
}

fn line(report: &CollectiveReport) -> String {
    let line = serde_json::to_string(report).expect("a report holds nothing that JSON cannot");
    format!("{line}\n")
}

fn row(report: &CollectiveReport) -> String {
    format!(
        "{:<15}{:>12}{:>7}{:>13.4}{:>12.4}{:>14.3}{:>12.3}{:>8}{}\n",
        report.operation,
        bytes(report.bytes),
        report.world,
        report.ms,
        report.ms_p90,
        report.algbw_gbs,
        report.busbw_gbs,
        report.wrong,
        if report.wrong > 0 { "   WRONG" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use cordee_protocol::Collective;
    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn rows_stand_under_their_titles() {
        let report = |operation, bytes, seconds: &[f64], wrong| {
            row(&CollectiveReport::new(operation, bytes, 4, seconds, wrong))
        };
        let mut page = TITLE.to_owned();
        page += &report(Collective::AllReduce, 1 << 10, &[2e-6, 3e-6, 9e-6], 0);
        page += &report(Collective::ReduceScatter, 1 << 30, &[0.25, 0.3, 0.5], 0);
        page += &report(Collective::Broadcast, 16 << 20, &[0.002], 4096);
        assert_snapshot!(page, @"
        operation             bytes  ranks           ms      p90 ms    algbw GB/s  busbw GB/s   wrong
        all_reduce          1.00KiB      4       0.0030      0.0090         0.341       0.512       0
        reduce_scatter      1.00GiB      4     300.0000    500.0000         3.579       2.684       0
        broadcast           16.0MiB      4       2.0000      2.0000         8.389       8.389    4096   WRONG
        ");
    }
}
