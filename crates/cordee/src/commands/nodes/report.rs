//! What became of an attempt, from what became of it on every node.

use std::{ops::Range, time::Duration};

use cordee_launch::{Ending, FailureReport, HungRank, LostNode, Outcome, rendezvous::Loss};
use cordee_protocol::Failure as Said;
use serde::{Deserialize, Serialize};

/// How a node's part of an attempt ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum NodeReport {
    /// Every rank is done.
    Done,
    /// On request, with a checkpoint.
    Stopped,
    /// Its ranks were killed, on request or because another node failed.
    Interrupted,
    /// A rank failed, or some hang.
    Failed(Box<FailureReport>),
    /// The ranks could not be started.
    NotStarted {
        /// The code to exit with.
        code: u8,
        /// Why.
        text: String,
    },
}

impl NodeReport {
    pub(crate) fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Stopped => Self::Stopped,
            Outcome::Interrupted => Self::Interrupted,
            Outcome::Failed(report) => Self::Failed(report.clone()),
        }
    }

    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::NotStarted { .. })
    }

    /// Whether it says itself that the cause is elsewhere.
    pub(crate) fn is_of_victims(&self) -> bool {
        let Self::Failed(report) = self else {
            return false;
        };
        let blames = report.failure.as_ref().and_then(|said| said.blames);
        blames.is_some() && report.silent.is_none() && report.hang.is_none()
    }

    /// Whether it is for the ranks of all nodes to tell who is to blame.
    pub(crate) fn is_hang(&self) -> bool {
        matches!(self, Self::Failed(report) if report.hang.is_some())
    }
}

/// A report as it is sent, with how the ranks stood when they were to be ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) report: NodeReport,
    pub(crate) seen: Vec<HungRank>,
}

/// A node of an attempt.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) node: usize,
    pub(crate) host: String,
    pub(crate) ranks: Range<usize>,
}

/// What became of a node, in the order in which it was heard.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Ended(NodeReport),
    Lost(String),
    /// Nothing was heard of it for so long.
    Silent(Duration),
    /// It is there, and heard nothing of the first node for so long.
    Missed(Duration),
}

impl Told {
    pub(crate) fn of_loss(why: &Loss) -> Self {
        match why {
            Loss::Silent { after } => Self::Silent(*after),
            Loss::GaveUp { after } => Self::Missed(*after),
            why => Self::Lost(why.to_string()),
        }
    }
}

/// One outcome of them all. The cause is the first rank that failed and blames no other; else a node that
/// is gone; else who hangs, judged by how all ranks stood; else the first of the victims.
pub(crate) fn merge(told: Vec<(Part, Told)>, seen: Vec<HungRank>, ran_for: Duration) -> Outcome {
    let mut hang = None;
    let mut lost = first_node(&told, ran_for);
    let mut own = None;
    let mut victim = None;
    let (mut stopped, mut interrupted) = (false, false);
    for (part, told) in told {
        match told {
            Told::Lost(why) => {
                lost.get_or_insert_with(|| of_lost(&part, why, ran_for));
            }
            Told::Silent(after) => {
                let why = Loss::Silent { after }.to_string();
                lost.get_or_insert_with(|| of_lost(&part, why, ran_for));
            }
            // Only where the first node has no part of its own, which is never.
            Told::Missed(after) => {
                let why = Loss::GaveUp { after }.to_string();
                lost.get_or_insert_with(|| of_lost(&part, why, ran_for));
            }
            Told::Ended(NodeReport::Done) => {}
            Told::Ended(NodeReport::Stopped) => stopped = true,
            Told::Ended(NodeReport::Interrupted) => interrupted = true,
            Told::Ended(NodeReport::NotStarted { code, text }) => {
                own.get_or_insert_with(|| not_started(&part, code, &text, ran_for));
            }
            Told::Ended(NodeReport::Failed(report)) if report.hang.is_some() => {
                hang = Some(match hang.take() {
                    None => report,
                    Some(first) => {
                        with_others(first, report.hang.map_or_else(Vec::new, |it| it.ranks))
                    }
                });
            }
            Told::Ended(ref ended @ NodeReport::Failed(ref report)) => {
                let place = if ended.is_of_victims() {
                    &mut victim
                } else {
                    &mut own
                };
                place.get_or_insert_with(|| report.clone());
            }
        }
    }
    let hang = hang.map(|hang| {
        let mut judged = with_others(hang, seen);
        if let Some(hang) = &mut judged.hang {
            hang.write();
        }
        judged
    });
    match own.or(lost).or(hang).or(victim) {
        Some(report) => Outcome::Failed(report),
        None if interrupted => Outcome::Interrupted,
        None if stopped => Outcome::Stopped,
        None => Outcome::Done,
    }
}

/// That the first node itself was lost for a while, if the others tell so: one missed it, or it heard
/// nothing of any of them. Of two nodes that hear nothing of each other either may be the one.
fn first_node(told: &[(Part, Told)], ran_for: Duration) -> Option<Box<FailureReport>> {
    let (first, _) = told.iter().find(|(part, _)| part.node == 0)?;
    let others = || told.iter().filter(|(part, _)| part.node != 0);
    let missed = others().find_map(|(part, told)| match told {
        Told::Missed(after) => Some(format!(
            "node {} ({}) heard nothing of it for {:.1} s",
            part.node,
            part.host,
            after.as_secs_f64()
        )),
        _ => None,
    });
    let silent = || {
        let all = others().all(|(_, told)| matches!(told, Told::Silent(_)));
        let words = "it heard nothing of all other nodes at once, and is cut off itself";
        (all && others().count() > 1).then(|| words.to_owned())
    };
    let why = missed.or_else(silent)?;
    Some(of_lost(first, why, ran_for))
}

fn with_others(mut report: Box<FailureReport>, others: Vec<HungRank>) -> Box<FailureReport> {
    if let Some(hang) = &mut report.hang {
        hang.with_others(others);
    }
    report
}

fn of_lost(part: &Part, why: String, ran_for: Duration) -> Box<FailureReport> {
    Box::new(FailureReport {
        lost: Some(LostNode {
            node: part.node,
            ranks: part.ranks.clone(),
            why,
        }),
        ..blank(part, ran_for)
    })
}

fn not_started(part: &Part, code: u8, text: &str, ran_for: Duration) -> Box<FailureReport> {
    Box::new(FailureReport {
        exit_code: code,
        ending: Ending::Exited(i32::from(code)),
        failure: Some(Said {
            rank: part.ranks.start,
            blames: None,
            code,
            message: format!("node {} could not start its ranks: {text}", part.node),
            hint: None,
        }),
        ..blank(part, ran_for)
    })
}

/// A report of a node none of whose ranks has told anything.
fn blank(part: &Part, ran_for: Duration) -> FailureReport {
    FailureReport {
        rank: part.ranks.start,
        host: part.host.clone(),
        pid: 0,
        device: None,
        ending: Ending::Unknown,
        out_of_memory_kills: 0,
        failure: None,
        last_step: None,
        ran_for,
        hang: None,
        lost: None,
        silent: None,
        left: 0,
        last_lines: Vec::new(),
        log: std::path::PathBuf::new(),
        exit_code: 1,
        others: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(node: usize) -> Part {
        Part {
            node,
            host: format!("host-{node}"),
            ranks: 2 * node..2 * node + 2,
        }
    }

    fn failed(node: usize, rank: usize, blames: Option<usize>) -> Told {
        Told::Ended(NodeReport::Failed(Box::new(FailureReport {
            rank,
            failure: Some(Said {
                rank,
                blames,
                code: 1,
                message: format!("rank {rank} fell"),
                hint: None,
            }),
            ..blank(&part(node), Duration::from_secs(9))
        })))
    }

    fn cause(told: Vec<(Part, Told)>) -> FailureReport {
        match merge(told, Vec::new(), Duration::from_secs(9)) {
            Outcome::Failed(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_that_blames_nobody_is_the_cause_wherever_it_is() {
        let report = cause(vec![
            (part(0), failed(0, 1, Some(3))),
            (part(2), Told::Ended(NodeReport::Interrupted)),
            (part(1), failed(1, 3, None)),
        ]);
        assert_eq!((report.rank, report.host.as_str()), (3, "host-1"));
    }

    #[test]
    fn a_node_that_is_gone_comes_before_those_who_miss_it() {
        let report = cause(vec![
            (part(0), failed(0, 1, Some(3))),
            (
                part(1),
                Told::Lost("nothing was heard of it for 15.0 s".to_owned()),
            ),
        ]);
        assert_eq!(report.class(), "node lost");
        assert!(report.is_from_outside());
        let text = report.render();
        assert!(
            text.starts_with(
                "node 1 (host-1) with ranks 2 and 3 is lost: nothing was heard of it for 15.0 s"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_first_node_is_to_blame_if_others_miss_it_or_all_are_silent() {
        let after = Duration::from_secs(15);
        let own = || (part(0), failed(0, 1, Some(3)));
        let lost = |told| cause(told).lost.unwrap();
        let silent = |node| (part(node), Told::Silent(after));
        let missed = lost(vec![(part(1), Told::Missed(after)), own()]);
        assert_eq!((missed.node, missed.ranks), (0, 0..2));
        assert_eq!(missed.why, "node 1 (host-1) heard nothing of it for 15.0 s");
        assert_eq!(lost(vec![silent(1), silent(2), own()]).node, 0);
        // Where another one is heard, the silent one is to blame, and of two it may be either.
        let ended = (part(2), Told::Ended(NodeReport::Interrupted));
        assert_eq!(lost(vec![own(), silent(1), ended]).node, 1);
        assert_eq!(lost(vec![own(), silent(1)]).node, 1);
    }

    #[test]
    fn all_that_end_in_order_are_one_end_in_order() {
        let ended = |node, report| (part(node), Told::Ended(report));
        let of = |told| merge(told, Vec::new(), Duration::ZERO);
        assert!(matches!(
            of(vec![ended(0, NodeReport::Done), ended(1, NodeReport::Done)]),
            Outcome::Done
        ));
        assert!(matches!(
            of(vec![
                ended(0, NodeReport::Done),
                ended(1, NodeReport::Stopped)
            ]),
            Outcome::Stopped
        ));
        assert!(matches!(
            of(vec![
                ended(0, NodeReport::Interrupted),
                ended(1, NodeReport::Stopped)
            ]),
            Outcome::Interrupted
        ));
    }
}
