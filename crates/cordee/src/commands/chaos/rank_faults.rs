//! Processes that are killed or stopped.

use std::time::Instant;

use cordee_metrics::Outcome;
use rustix::process::Signal;

use super::{
    processes,
    records::Ending,
    schedule::Fault,
    trial::{Halt, Trial},
};

/// What the record of a killed rank says.
pub(super) const KILLED: &str = "signal 9";

/// What the record of a stopped rank says.
pub(super) const HANGS: &str = "hang";

/// What an attempt that ended made of a rank's fault, and whether it was that.
pub(super) fn judge(ending: &Ending, rank: usize, class: &str) -> (String, bool) {
    let outcome = format!("{:?}", ending.outcome).to_lowercase();
    let Some(failure) = &ending.failure else {
        return (format!("{outcome}, should be rank {rank}: {class}"), false);
    };
    let named = failure
        .rank
        .map_or_else(|| "no rank".to_owned(), |rank| format!("rank {rank}"));
    let words = format!("{named}: {}", failure.class);
    let right =
        ending.outcome == Outcome::Failed && failure.rank == Some(rank) && failure.class == class;
    if right {
        (words, true)
    } else {
        (
            format!("{outcome}, {words}, should be rank {rank}: {class}"),
            false,
        )
    }
}

impl Trial {
    /// Kills a rank.
    pub(super) fn kill(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let attempt = self.attempt()?;
        self.rank(&attempt, fault.rank)?.signal(Signal::KILL)?;
        let ending = self.ending(attempt.number)?;
        self.recovered(attempt.number)?;
        Ok(judge(&ending, fault.rank, KILLED))
    }

    /// Stops a rank within a step: whatever else it may be doing has a longer deadline.
    pub(super) fn stop(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let begun = Instant::now();
        let patience = self.pace.steps(2 * self.shape.every);
        loop {
            let attempt = self.attempt()?;
            let rank = self.rank(&attempt, fault.rank)?;
            rank.signal(Signal::STOP)?;
            self.hit();
            let stopped = cordee_metrics::unix_time();
            let status = self.wait_for("the status of a stopped rank", patience, |records| {
                let said = records.status().filter(|status| status.time > stopped);
                let ended = records.ending(attempt.number).is_some();
                said.map(Some).or(ended.then_some(None))
            })?;
            let phase = status.and_then(|status| {
                Some(
                    status
                        .ranks
                        .into_iter()
                        .find(|it| it.rank == fault.rank)?
                        .phase,
                )
            });
            let in_a_step = phase
                .as_deref()
                .is_none_or(|phase| matches!(phase, "training" | "recomputing"));
            if in_a_step || begun.elapsed() > patience {
                let ending = self.ending(attempt.number)?;
                self.recovered(attempt.number)?;
                return Ok(judge(&ending, fault.rank, HANGS));
            }
            rank.signal(Signal::CONT)?;
            self.pause(self.pace.step)?;
        }
    }

    /// Kills the launcher, sees its ranks go, and resumes the run.
    pub(super) fn kill_launcher(&mut self) -> Result<(String, bool), Halt> {
        let attempt = self.attempt()?;
        if let Some(mut launcher) = self.launcher.take() {
            launcher.kill();
        }
        let gone = processes::wait_until_gone(&self.own(), &attempt.pids);
        if let Err(left) = gone {
            let left = processes::names(&left);
            return Err(Halt::GivenUp(format!(
                "the launcher is gone, and {left} not"
            )));
        }
        self.start(true)?;
        let patience = self.pace.restart();
        let ending = self.wait_for(
            "a word about the launcher that is gone",
            patience,
            |records| records.ending(attempt.number),
        )?;
        self.recovered(attempt.number)?;
        let outcome = format!("{:?}", ending.outcome).to_lowercase();
        Ok(match ending.outcome {
            Outcome::Lost => ("lost, no rank left".to_owned(), true),
            _ => (format!("{outcome}, should be lost"), false),
        })
    }
}

#[cfg(test)]
mod tests {
    use cordee_metrics::FailureRecord;
    use insta::assert_snapshot;

    use super::*;

    fn ending(outcome: Outcome, rank: Option<usize>, class: &str) -> Ending {
        Ending {
            outcome,
            failure: Some(FailureRecord {
                rank,
                pid: None,
                device: None,
                node: None,
                host: None,
                class: class.to_owned(),
                place: String::new(),
                code: 1,
                verdict: String::new(),
            }),
        }
    }

    #[test]
    fn the_rank_and_the_class_must_be_those_of_the_fault() {
        let failed = |rank, class| judge(&ending(Outcome::Failed, rank, class), 2, KILLED);
        assert_eq!(
            failed(Some(2), KILLED),
            ("rank 2: signal 9".to_owned(), true)
        );
        let wrong = [
            failed(Some(1), KILLED),
            failed(None, KILLED),
            failed(Some(2), HANGS),
            judge(&ending(Outcome::Stopped, Some(2), KILLED), 2, KILLED),
        ];
        assert!(wrong.iter().all(|(_, right)| !right));
        let words: Vec<_> = wrong.into_iter().map(|(words, _)| words).collect();
        assert_snapshot!(words.join("\n"), @"
        failed, rank 1: signal 9, should be rank 2: signal 9
        failed, no rank: signal 9, should be rank 2: signal 9
        failed, rank 2: hang, should be rank 2: signal 9
        stopped, rank 2: signal 9, should be rank 2: signal 9
        ");
    }
}
