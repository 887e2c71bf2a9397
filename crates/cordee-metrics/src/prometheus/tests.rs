//! The text of a whole run, kept beside the tests; `promtool check metrics` finds no fault with it.

use insta::assert_snapshot;

use super::*;
use crate::Ledger;

fn status(ranks: usize, nodes: &[(&str, &str)]) -> RunStatus {
    let rank = |rank: usize| RankStatus {
        rank,
        node: rank / 2,
        pid: 100 + rank as u32,
        device: None,
        process: if rank == 3 { "ended" } else { "running" }.to_owned(),
        phase: if rank == 0 { "saving" } else { "training" }.to_owned(),
        step: 141,
        phase_s: 0.25,
        quiet_s: 1.5,
        waits_in: None,
    };
    let node = |(node, (host, state)): (usize, &(&str, &str))| NodeStatus {
        node,
        host: (*host).to_owned(),
        state: (*state).to_owned(),
        heard_s: 0.5,
        ranks: if *state == "member" { 2 } else { 0 },
    };
    RunStatus {
        time: 1_790_000_000.25,
        host: "node-7".to_owned(),
        launcher_pid: 99,
        attempt: 2,
        state: RunState::Running,
        steps: 320,
        ranks: (0..ranks).map(rank).collect(),
        nodes: nodes.iter().enumerate().map(node).collect(),
        ledger: Ledger {
            training_s: 30.0,
            start_s: 10.0,
            ..Ledger::default()
        },
    }
}

fn figures(status: &RunStatus) -> RunFigures<'_> {
    RunFigures {
        run: "a \"run\" in C:\\runs",
        version: "0.1.0",
        restarts: 1,
        training: Some(TrainingFigures {
            step: 140,
            loss: f64::NAN,
            tokens_per_second: 81_920.5,
        }),
        status,
    }
}

#[test]
fn a_job_on_several_machines() {
    let nodes = [("a", "member"), ("b", "member"), ("c", "spare")];
    let status = status(4, &nodes);
    assert_snapshot!("prometheus", figures(&status).text(Exposition::Prometheus));
    assert_snapshot!(
        "openmetrics",
        figures(&status).text(Exposition::OpenMetrics)
    );
}

#[test]
fn what_is_not_known_is_absent() {
    let mut status = status(0, &[]);
    status.ledger = Ledger::default();
    let run = RunFigures {
        training: None,
        ..figures(&status)
    };
    let text = run.text(Exposition::Prometheus);
    for absent in [
        "cordee_step ",
        "cordee_loss",
        "cordee_goodput",
        "cordee_rank",
        "cordee_node",
    ] {
        assert!(!text.contains(absent), "{absent}");
    }
    assert!(text.contains("cordee_steps 320\n"));
}

#[test]
fn a_state_that_is_new_is_counted_beside_the_usual() {
    let status = status(0, &[("a", "member"), ("b", "drained"), ("c", "drained")]);
    let text = figures(&status).text(Exposition::Prometheus);
    assert!(text.contains("cordee_nodes{state=\"lost\"} 0\n"));
    assert!(text.contains("cordee_nodes{state=\"drained\"} 2\n"));
}

#[test]
fn names_follow_the_conventions() {
    for metric in METRICS {
        let name = metric.name;
        assert!(name.starts_with("cordee_"), "{name}");
        assert_eq!(
            name.ends_with("_total"),
            metric.kind == Kind::Counter,
            "{name}"
        );
        assert_eq!(name.ends_with("_info"), metric.kind == Kind::Info, "{name}");
        let is_plain = |text: &str| text.bytes().all(|it| it.is_ascii_lowercase() || it == b'_');
        assert!(
            is_plain(name) && metric.labels.iter().all(|it| is_plain(it)),
            "{name}"
        );
        let same = METRICS.iter().filter(|it| it.name == name).count();
        assert_eq!(same, 1, "{name}");
    }
}
