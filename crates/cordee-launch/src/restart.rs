//! Whether a run that failed is started again.
//!
//! Most failures of large machines are over once the processes are new; a mistake in a config or a
//! program is not, and to start such a run again costs its owner hours. So a restart is free while the
//! run gets on, is counted while it does not, and is refused where the same happened before.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cordee_protocol::ExitCode;

use crate::FailureReport;

/// How often a run may be started again.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Restarts within `window` without a new checkpoint between.
    pub restarts: usize,
    /// How long a restart counts.
    pub window: Duration,
}

/// What is done about a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The run is started again; so many restarts count by now, this one included.
    Restart {
        /// Restarts that count.
        counted: usize,
    },
    /// It is not.
    GiveUp {
        /// The code to exit with.
        code: u8,
        /// Why, as the rest of a sentence that begins with `not restarted: `.
        why: String,
    },
}

/// The restarts of a run so far.
#[derive(Debug)]
pub struct Restarts {
    policy: RestartPolicy,
    times: VecDeque<Instant>,
    /// The last failure that may be the run's own fault, and the checkpoint that there was then.
    last: Option<(Signature, Option<u64>)>,
    checkpoint: Option<u64>,
}

/// What makes two failures the same, whichever rank they hit.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    class: String,
    place: String,
    step: Option<u64>,
}

impl Restarts {
    /// Of a run that has not failed yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            times: VecDeque::new(),
            last: None,
            checkpoint: None,
        }
    }

    /// Decides about a failure. `checkpoint` is the step of the newest checkpoint, if there is one.
    pub fn decide(
        &mut self,
        now: Instant,
        failure: &FailureReport,
        checkpoint: Option<u64>,
    ) -> Decision {
        if checkpoint > self.checkpoint {
            self.times.clear();
        }
        self.checkpoint = checkpoint;
        let give_up = |code: u8, why: &str| Decision::GiveUp {
            code,
            why: why.to_owned(),
        };
        if self.policy.restarts == 0 {
            return give_up(
                failure.exit_code,
                "restarts are off (launch.max_restarts = 0)",
            );
        }
        let known = ExitCode::from_code(i32::from(failure.exit_code));
        if let Some(why) = known.and_then(is_final) {
            return give_up(failure.exit_code, why);
        }
        if !failure.is_from_outside() {
            let signature = Signature {
                class: failure.class(),
                place: failure.place(),
                step: failure.last_step,
            };
            let again = self.last.as_ref() == Some(&(signature.clone(), checkpoint));
            self.last = Some((signature, checkpoint));
            if again {
                return give_up(
                    ExitCode::DoNotRequeue.code(),
                    "the same has happened twice at the same place, without a new checkpoint between",
                );
            }
        }
        let window = self.policy.window;
        self.times.retain(|&time| now.duration_since(time) < window);
        if self.times.len() >= self.policy.restarts {
            let why = format!(
                "{} restarts in {} s without a new checkpoint are enough (launch.max_restarts)",
                self.times.len(),
                window.as_secs()
            );
            return give_up(failure.exit_code, &why);
        }
        self.times.push_back(now);
        Decision::Restart {
            counted: self.times.len(),
        }
    }
}

/// Why a run that ended with this code is not started again, whatever the budget.
fn is_final(code: ExitCode) -> Option<&'static str> {
    match code {
        ExitCode::Usage => Some("the config or the data has to be changed"),
        ExitCode::Environment => Some("this machine lacks something"),
        ExitCode::Diverged => {
            Some("it would diverge again: every step is the same to the last bit")
        }
        ExitCode::DoNotRequeue => Some("the program asks for that"),
        ExitCode::BadNode => Some("this node is bad"),
        ExitCode::Done
        | ExitCode::Failed
        | ExitCode::Requeue
        | ExitCode::Hang
        | ExitCode::RendezvousTimeout => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use cordee_protocol::Failure;

    use super::*;
    use crate::Ending;

    const POLICY: RestartPolicy = RestartPolicy {
        restarts: 3,
        window: Duration::from_mins(10),
    };

    fn failed(ending: Ending, said: Option<&str>, step: u64) -> FailureReport {
        FailureReport {
            rank: 1,
            host: "node".to_owned(),
            pid: 7,
            device: None,
            ending,
            out_of_memory_kills: 0,
            failure: said.map(|message| Failure {
                rank: 1,
                blames: None,
                code: 1,
                message: message.to_owned(),
                hint: None,
            }),
            hang: None,
            lost: None,
            last_step: Some(step),
            ran_for: Duration::from_secs(9),
            silent: None,
            left: 0,
            last_lines: Vec::new(),
            log: PathBuf::new(),
            exit_code: match ending {
                Ending::Exited(code) => code as u8,
                _ => 1,
            },
            others: Vec::new(),
        }
    }

    const KILLED: Ending = Ending::Killed {
        signal: 9,
        core_dumped: false,
    };

    fn code(decision: &Decision) -> Option<u8> {
        match decision {
            Decision::Restart { .. } => None,
            Decision::GiveUp { code, .. } => Some(*code),
        }
    }

    #[test]
    fn a_run_that_gets_on_is_restarted_for_ever() {
        let (mut restarts, now) = (Restarts::new(POLICY), Instant::now());
        for checkpoint in 0..100 {
            let decision = restarts.decide(now, &failed(KILLED, None, 5), Some(checkpoint));
            assert_eq!(decision, Decision::Restart { counted: 1 });
        }
    }

    #[test]
    fn a_run_that_does_not_has_a_budget_within_the_window() {
        let (mut restarts, now) = (Restarts::new(POLICY), Instant::now());
        let mut decide = |seconds| {
            let now = now + Duration::from_secs(seconds);
            code(&restarts.decide(now, &failed(KILLED, None, 5), None))
        };
        assert_eq!([decide(0), decide(10), decide(20)], [None; 3]);
        assert_eq!(decide(30), Some(1));
        assert_eq!(decide(601), None, "the first is no longer counted");
    }

    #[test]
    fn the_same_twice_is_enough_unless_there_is_a_new_checkpoint() {
        let now = Instant::now();
        let exit = |said, step| failed(Ending::Exited(1), Some(said), step);
        let mut restarts = Restarts::new(POLICY);
        assert_eq!(
            code(&restarts.decide(now, &exit("no shard 7", 5), None)),
            None
        );
        assert_eq!(
            code(&restarts.decide(now, &exit("no shard 9", 5), None)),
            Some(93),
            "numbers differ from rank to rank"
        );
        let mut restarts = Restarts::new(POLICY);
        assert_eq!(
            code(&restarts.decide(now, &exit("no shard", 5), Some(4))),
            None
        );
        assert_eq!(
            code(&restarts.decide(now, &exit("no shard", 5), Some(6))),
            None
        );
        assert_eq!(
            code(&restarts.decide(now, &exit("no shard", 7), Some(6))),
            None
        );
        assert_eq!(
            code(&restarts.decide(now, &exit("no room", 7), Some(6))),
            None
        );
    }

    #[test]
    fn what_will_not_change_is_final() {
        for final_code in [2, 3, 4, 93, 94] {
            let mut restarts = Restarts::new(POLICY);
            let failure = failed(Ending::Exited(final_code), Some("no"), 5);
            let decision = restarts.decide(Instant::now(), &failure, Some(4));
            assert_eq!(code(&decision), Some(final_code as u8));
        }
        let off = RestartPolicy {
            restarts: 0,
            ..POLICY
        };
        let decision = Restarts::new(off).decide(Instant::now(), &failed(KILLED, None, 5), None);
        assert_eq!(code(&decision), Some(1));
    }
}
