//! What a launcher tells Prometheus of its run, as text that a server collects.
//!
//! Every metric is a row of one table, from which the text and the page of the reference are made. Names
//! follow <https://prometheus.io/docs/practices/naming/>. What is not known is absent, never zero.
//!
//! It does not know how the text travels, and keeps nothing from one time to the next.

mod exposition;

pub use exposition::Exposition;
use exposition::{Family, Kind};

use crate::{NodeStatus, RankStatus, RunState, RunStatus};

/// What a node of a job can be to it; others appear when a node is one.
const NODE_STATES: [&str; 4] = ["member", "spare", "waiting", "lost"];

/// Figures of the last step that the training told of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingFigures {
    /// The step.
    pub step: u64,
    /// Its loss, in nats per trained token.
    pub loss: f64,
    /// Tokens that all ranks together read in a second.
    pub tokens_per_second: f64,
}

/// All that is told of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunFigures<'a> {
    /// Name of the run.
    pub run: &'a str,
    /// Version of the program.
    pub version: &'a str,
    /// Attempts that this launcher started after a failure.
    pub restarts: u64,
    /// Of the last step; `None` before the first, and where no rank tells of steps.
    pub training: Option<TrainingFigures>,
    /// How the run stands.
    pub status: &'a RunStatus,
}

impl RunFigures<'_> {
    /// The text of it.
    pub fn text(&self, format: Exposition) -> String {
        let mut text = String::new();
        for metric in METRICS {
            let family = Family {
                name: metric.name,
                kind: metric.kind,
                labels: metric.labels,
                help: metric.help,
            };
            format.push(&mut text, &family, &(metric.samples)(self));
        }
        format.end(&mut text);
        text
    }
}

/// Values of the labels, and the value.
type Sample = (Vec<String>, f64);

struct Metric {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    samples: fn(&RunFigures<'_>) -> Vec<Sample>,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    samples: fn(&RunFigures<'_>) -> Vec<Sample>,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
        samples,
    }
}

const RANK: &[&str] = &["rank", "node"];
const NODE: &[&str] = &["node", "host"];

const METRICS: &[Metric] = &[
    metric(
        "cordee_up",
        Kind::Gauge,
        &[],
        "1 as long as the launcher answers.",
        |_| one(1.0),
    ),
    metric(
        "cordee_build_info",
        Kind::Info,
        &["version"],
        "The program.",
        |it| vec![(vec![it.version.to_owned()], 1.0)],
    ),
    metric(
        "cordee_run_info",
        Kind::Info,
        &["run", "host"],
        "The run, and the machine of its launcher.",
        |it| vec![(vec![it.run.to_owned(), it.status.host.clone()], 1.0)],
    ),
    metric(
        "cordee_run_state",
        Kind::Gauge,
        &["state"],
        "1 for what the launcher is doing (`running`, `stopping`, `restarting`, `ended`), 0 for the others.",
        run_states,
    ),
    metric(
        "cordee_status_timestamp_seconds",
        Kind::Gauge,
        &[],
        "When the run was looked at, in seconds since 1970.",
        |it| one(it.status.time),
    ),
    metric(
        "cordee_step",
        Kind::Gauge,
        &[],
        "The last optimizer step done.",
        |it| training(it, |figures| figures.step as f64),
    ),
    metric(
        "cordee_steps",
        Kind::Gauge,
        &[],
        "Optimizer steps that the run ends after.",
        |it| one(it.status.steps as f64),
    ),
    metric(
        "cordee_loss",
        Kind::Gauge,
        &[],
        "Mean loss per trained token of the last step, in nats.",
        |it| training(it, |figures| figures.loss),
    ),
    metric(
        "cordee_tokens_per_second",
        Kind::Gauge,
        &[],
        "Tokens that all ranks together read in a second, in the last step.",
        |it| training(it, |figures| figures.tokens_per_second),
    ),
    metric(
        "cordee_attempt",
        Kind::Gauge,
        &[],
        "Which attempt at the run it is, from 1; it goes on over resumes.",
        |it| one(it.status.attempt as f64),
    ),
    metric(
        "cordee_restarts_total",
        Kind::Counter,
        &[],
        "Attempts that this launcher started after a failure.",
        |it| one(it.restarts as f64),
    ),
    metric(
        "cordee_time_seconds_total",
        Kind::Counter,
        &["part"],
        "Where the time of this attempt has gone, by the parts of its `ledger`; each attempt begins at 0.",
        |it| {
            let parts = it.status.ledger.parts().into_iter();
            parts
                .map(|(part, seconds)| (vec![part.to_owned()], seconds))
                .collect()
        },
    ),
    metric(
        "cordee_goodput_ratio",
        Kind::Gauge,
        &[],
        "The share of the time of this attempt that trained or validated.",
        |it| {
            Some(it.status.ledger.effective())
                .filter(|it| !it.is_nan())
                .map_or(Vec::new(), one)
        },
    ),
    metric(
        "cordee_rank_up",
        Kind::Gauge,
        RANK,
        "1 while the process of the rank is there, 0 once it ended.",
        |it| ranks(it, |rank| f64::from(rank.process != "ended")),
    ),
    metric(
        "cordee_rank_step",
        Kind::Gauge,
        RANK,
        "The step that the rank is at.",
        |it| ranks(it, |rank| rank.step as f64),
    ),
    metric(
        "cordee_rank_quiet_seconds",
        Kind::Gauge,
        RANK,
        "Time since the rank last got anything done.",
        |it| ranks(it, |rank| rank.quiet_s),
    ),
    metric(
        "cordee_rank_phase",
        Kind::Gauge,
        &["rank", "node", "phase"],
        "1 for what the rank is doing; absent for all else.",
        |it| {
            let ranks = it.status.ranks.iter();
            ranks
                .map(|rank| ([rank_labels(rank), vec![rank.phase.clone()]].concat(), 1.0))
                .collect()
        },
    ),
    metric(
        "cordee_rank_phase_seconds",
        Kind::Gauge,
        RANK,
        "Time since the rank began to do that.",
        |it| ranks(it, |rank| rank.phase_s),
    ),
    metric(
        "cordee_nodes",
        Kind::Gauge,
        &["state"],
        "Machines of a job on several, by what they are to it: `member`, `spare`, `waiting`, `lost`.",
        node_states,
    ),
    metric(
        "cordee_node_ranks",
        Kind::Gauge,
        NODE,
        "Ranks that the machine runs.",
        |it| nodes(it, |node| node.ranks as f64),
    ),
    metric(
        "cordee_node_quiet_seconds",
        Kind::Gauge,
        NODE,
        "Time since the machine was last heard of.",
        |it| nodes(it, |node| node.heard_s),
    ),
];

/// Rows for the reference: each metric with its labels, and what it means.
pub(crate) fn rows() -> impl Iterator<Item = (String, &'static str)> {
    METRICS.iter().map(|metric| {
        let labels = match metric.labels {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        (format!("{}{labels}", metric.name), metric.help)
    })
}

fn one(value: f64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

fn training(run: &RunFigures<'_>, value: impl Fn(&TrainingFigures) -> f64) -> Vec<Sample> {
    run.training
        .as_ref()
        .map_or(Vec::new(), |it| one(value(it)))
}

fn run_states(run: &RunFigures<'_>) -> Vec<Sample> {
    let states = [
        (RunState::Running, "running"),
        (RunState::Stopping, "stopping"),
        (RunState::Restarting, "restarting"),
        (RunState::Ended, "ended"),
    ];
    let sample = |(state, name): (RunState, &str)| {
        (vec![name.to_owned()], f64::from(state == run.status.state))
    };
    states.into_iter().map(sample).collect()
}

fn rank_labels(rank: &RankStatus) -> Vec<String> {
    vec![rank.rank.to_string(), rank.node.to_string()]
}

fn ranks(run: &RunFigures<'_>, value: impl Fn(&RankStatus) -> f64) -> Vec<Sample> {
    let ranks = run.status.ranks.iter();
    ranks.map(|rank| (rank_labels(rank), value(rank))).collect()
}

fn nodes(run: &RunFigures<'_>, value: impl Fn(&NodeStatus) -> f64) -> Vec<Sample> {
    let labels = |node: &NodeStatus| vec![node.node.to_string(), node.host.clone()];
    let nodes = run.status.nodes.iter();
    nodes.map(|node| (labels(node), value(node))).collect()
}

/// How many nodes are in each state, the usual states with none included.
fn node_states(run: &RunFigures<'_>) -> Vec<Sample> {
    let nodes = &run.status.nodes;
    if nodes.is_empty() {
        return Vec::new();
    }
    let mut states = NODE_STATES.to_vec();
    for node in nodes {
        if !states.contains(&node.state.as_str()) {
            states.push(&node.state);
        }
    }
    let count = |state: &str| nodes.iter().filter(|node| node.state == state).count() as f64;
    let samples = states
        .into_iter()
        .map(|state| (vec![state.to_owned()], count(state)));
    samples.collect()
}

#[cfg(test)]
mod tests;
