//! Waiting no longer than is sensible for what may never come: a disk that is gone, a driver that is
//! stuck.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use cordee_protocol::{Check, CheckReport, Finding};

/// Something that can be looked at, and all that it tells.
pub struct Probe {
    /// What it tells of, in order.
    pub checks: Vec<Check>,
    /// Looks, and tells of some of the checks; of the others there is nothing to tell.
    pub look: Box<dyn FnOnce() -> Vec<(Check, Finding)> + Send>,
}

/// Runs what may never return on a thread of its own. `Err` tells why there is no answer: it took
/// longer than `limit`, or it panicked. The thread is left behind then.
pub fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::result::Result<T, String> {
    let (answer, answered) = channel();
    let started = thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || drop(answer.send(work())));
    if let Err(error) = started {
        return Err(format!("no thread to look with: {error}"));
    }
    answered.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => {
            format!("no answer within {} s", limit.as_secs_f64())
        }
        RecvTimeoutError::Disconnected => "looking at it panicked".to_owned(),
    })
}

/// Runs the probes one after the other and reports every check of each; those of a probe that does not
/// return in time, which is the most that `limit` gives one of its checks, are unknown.
pub fn run_probes(
    probes: Vec<Probe>,
    limit: impl Fn(Check) -> Duration,
    report: &mut dyn FnMut(CheckReport),
) {
    for Probe { checks, look } in probes {
        let limit = checks.iter().map(|check| limit(*check)).max();
        let limit = limit.unwrap_or_default();
        let found = within(limit, look);
        for check in checks {
            let finding = match &found {
                Ok(found) => found.iter().find(|(of, _)| *of == check).map_or_else(
                    || Finding::Unknown {
                        why: "nothing to tell of it".to_owned(),
                    },
                    |(_, finding)| finding.clone(),
                ),
                Err(why) => Finding::Unknown { why: why.clone() },
            };
            report(CheckReport {
                check,
                of: None,
                finding,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_hangs_or_panics_is_unknown_and_the_next_one_runs() {
        let probe = |check, look: fn() -> Vec<(Check, Finding)>| Probe {
            checks: vec![check],
            look: Box::new(look),
        };
        let probes = vec![
            probe(Check::FreeSpace, || {
                thread::sleep(Duration::from_mins(1));
                vec![(Check::FreeSpace, Finding::measured(1.0))]
            }),
            probe(Check::Clock, || panic!("on purpose")),
            probe(Check::Memory, Vec::new),
            probe(Check::Cpus, || vec![(Check::Cpus, Finding::measured(2.0))]),
        ];
        let started = std::time::Instant::now();
        let mut told = Vec::new();
        // A panic takes its time to tell where it was.
        let limit = |check| match check {
            Check::FreeSpace => Duration::from_millis(200),
            _ => Duration::from_secs(20),
        };
        run_probes(probes, limit, &mut |report| {
            told.push((report.check, report.finding));
        });
        assert!(started.elapsed() < Duration::from_secs(30));
        let unknown = |why: &str| Finding::Unknown {
            why: why.to_owned(),
        };
        assert_eq!(
            told,
            [
                (Check::FreeSpace, unknown("no answer within 0.2 s")),
                (Check::Clock, unknown("looking at it panicked")),
                (Check::Memory, unknown("nothing to tell of it")),
                (Check::Cpus, Finding::measured(2.0)),
            ]
        );
    }
}
