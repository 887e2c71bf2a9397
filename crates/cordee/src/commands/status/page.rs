//! How a run stands, as a person reads it.

use std::fmt::Write as _;

use cordee_metrics::{AttemptEvent, NodeStatus, RankStatus, RunStatus};

use crate::{
    console::{Side, compact, duration, goodput, harmless, table},
    run_record::{Launcher, RunRecord, Standing},
};

/// A rank that got nothing done for less than this is not yet remarkable, in seconds.
const QUIET_S: f64 = 5.0;

/// How much longer than the others a rank is quiet that is remarkable.
const QUIETER: f64 = 5.0;

/// A launcher that writes every second and has not for this long is held up, in seconds.
const LATE_S: f64 = 5.0;

/// All that is known now.
pub(super) fn page(record: &RunRecord, status: &RunStatus) -> String {
    let standing = record.standing();
    let mut page = head(record, status.attempt, standing);
    let mut line = |label: &str, text: &str| {
        let _ = writeln!(page, "  {label:<10}  {text}");
    };
    line("step", &progress(record, status, standing));
    line("launcher", &launcher(record, status, standing));
    if !status.nodes.is_empty() {
        line("nodes", &nodes(status));
    }
    line("checkpoint", &checkpoint(record, standing));
    if let Some(ledger) = record.ledger() {
        line("time", &goodput(&ledger, record.starts()));
    }
    if let Some(why) = verdict(record, standing) {
        line("why", &why);
    }
    if standing.is_under_way() {
        let _ = write!(page, "\n{}", ranks(status));
    } else if standing == Standing::Lost {
        let _ = write!(
            page,
            "\nits ranks, when they were last seen:\n{}",
            ranks(status)
        );
    }
    page
}

/// The same while there is no rank to tell of.
pub(super) fn preparing(record: &RunRecord) -> String {
    let head = head(record, record.starts(), record.standing());
    format!("{head}  its launcher prepares the data, and has told nothing yet\n")
}

fn head(record: &RunRecord, attempt: usize, standing: Standing) -> String {
    let name = harmless(&record.name());
    format!("{name}: {standing}, attempt {attempt}\n")
}

fn progress(record: &RunRecord, status: &RunStatus, standing: Standing) -> String {
    let (recorded, _) = record.steps();
    // A rank tells the step that it is in, which is not done yet.
    let reached = status.ranks.iter().map(|it| it.step).max();
    let step = if standing.is_under_way() {
        reached.unwrap_or(0).max(recorded)
    } else {
        recorded
    };
    let mut text = format!("{step} of {}", status.steps);
    if let Some(last) = record.last_steps.last() {
        let _ = write!(text, ", loss {:.4}", last.loss);
    }
    if let Some(rate) = record
        .throughput()
        .filter(|_| standing == Standing::Running)
    {
        let _ = write!(text, ", {} tok/s", compact(rate));
    }
    text
}

fn launcher(record: &RunRecord, status: &RunStatus, standing: Standing) -> String {
    let (pid, host) = (status.launcher_pid, harmless(&status.host));
    let age = record.status_age().unwrap_or(0.0);
    let told = format!("told this {} ago", duration(age));
    let late = if age > LATE_S {
        ": it is held up, or stopped"
    } else {
        ""
    };
    match record.launcher {
        Launcher::Alive => format!("process {pid}, {told}{late}"),
        Launcher::Gone if standing == Standing::Lost => {
            format!("process {pid} is gone, {told}; go on with `cordee train --resume`")
        }
        Launcher::Gone => format!("has ended, {told}"),
        Launcher::Unknown => format!(
            "process {pid} on {host}, {told}; whether it is still there cannot be seen from here"
        ),
    }
}

/// Every node with its machine, and what sets it apart.
fn nodes(status: &RunStatus) -> String {
    let node = |node: &NodeStatus| {
        let NodeStatus {
            node,
            host,
            state,
            heard_s,
            ..
        } = node;
        let mut text = format!("{node} {}", harmless(host));
        if state != "member" {
            let _ = write!(text, " ({})", harmless(state));
        } else if *heard_s > LATE_S {
            let _ = write!(text, " (not heard of for {})", duration(*heard_s));
        }
        text
    };
    let nodes: Vec<_> = status.nodes.iter().map(node).collect();
    nodes.join(", ")
}

fn checkpoint(record: &RunRecord, standing: Standing) -> String {
    let Some((step, path)) = record.checkpoints.first() else {
        let yet = if standing.is_under_way() { " yet" } else { "" };
        return format!("none{yet}");
    };
    let age = fs_err::metadata(path)
        .and_then(|it| it.modified())
        .ok()
        .and_then(|time| time.elapsed().ok());
    let age = age.map_or_else(String::new, |age| {
        format!(", {} ago", duration(age.as_secs_f64()))
    });
    format!("after step {step}{age}")
}

/// The first line of what was said when the run failed.
fn verdict(record: &RunRecord, standing: Standing) -> Option<String> {
    if !matches!(standing, Standing::Failed | Standing::Restarting) {
        return None;
    }
    let failure = record
        .attempts
        .iter()
        .rev()
        .find_map(|it| match &it.event {
            AttemptEvent::Ended { failure, .. } => failure.as_ref(),
            AttemptEvent::Started { .. } => None,
        })?;
    failure.verdict.lines().next().map(harmless)
}

/// A row for every rank, and a word at the end of those that something is the matter with.
fn ranks(status: &RunStatus) -> String {
    let heads = [
        ("rank", Side::Right),
        ("node", Side::Right),
        ("GPU", Side::Left),
        ("pid", Side::Right),
        ("process", Side::Left),
        ("phase", Side::Left),
        ("step", Side::Right),
        ("for", Side::Right),
        ("waits in", Side::Left),
        ("", Side::Left),
    ];
    let rows: Vec<_> = status
        .ranks
        .iter()
        .map(|rank| {
            let or_none = |text: &Option<String>| text.as_deref().map_or("-".to_owned(), harmless);
            [
                rank.rank.to_string(),
                rank.node.to_string(),
                or_none(&rank.device),
                rank.pid.to_string(),
                harmless(&rank.process),
                harmless(&rank.phase),
                rank.step.to_string(),
                time(rank.phase_s),
                or_none(&rank.waits_in),
                remark(rank, &status.ranks).unwrap_or_default(),
            ]
        })
        .collect();
    let mut without = Vec::new();
    if status.nodes.is_empty() {
        without.push("node");
    }
    if status.ranks.iter().all(|it| it.device.is_none()) {
        without.push("GPU");
    }
    table(heads, &rows, &without)
}

/// What sets a rank apart from the others.
fn remark(rank: &RankStatus, all: &[RankStatus]) -> Option<String> {
    let others = || all.iter().filter(|it| it.rank != rank.rank);
    if rank.process == "ended" {
        return Some("<- ended".to_owned());
    }
    if rank.quiet_s < QUIET_S {
        return None;
    }
    let quiet = time(rank.quiet_s);
    if rank.waits_in.is_none() && others().any(|it| it.waits_in.is_some()) {
        return Some(format!("<- quiet for {quiet}, others wait for it"));
    }
    let mut times: Vec<f64> = others().map(|it| it.quiet_s).collect();
    times.sort_by(f64::total_cmp);
    let usual = times.get(times.len() / 2)?;
    (rank.quiet_s > QUIETER * usual.max(1.0)).then(|| format!("<- quiet for {quiet}"))
}

/// Tenths matter of what is short.
fn time(seconds: f64) -> String {
    if seconds < 9.95 {
        format!("{seconds:.1}s")
    } else {
        duration(seconds)
    }
}

#[cfg(test)]
mod tests {
    use cordee_metrics::{Outcome, RunState};
    use insta::assert_snapshot;

    use super::*;
    use crate::run_record::samples::{self, BEGAN};

    fn shown(change: impl FnOnce(&mut RunRecord)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut record = samples::record(folder.path());
        record.launcher = Launcher::Alive;
        change(&mut record);
        page(&record, record.status.as_ref().unwrap())
    }

    #[test]
    fn a_run_that_runs() {
        assert_snapshot!(shown(|record| {
            let ranks = &mut record.status.as_mut().unwrap().ranks;
            ranks[1].waits_in = Some("all_reduce #17 of 4194304 bytes".to_owned());
            for (rank, ranks) in ranks.iter_mut().enumerate() {
                ranks.device = Some(format!("GPU-{rank}"));
            }
        }), @"
        my run: running, attempt 2
          step        142 of 320, loss 5.5800, 16.4k tok/s
          launcher    process 4241, told this 0s ago
          checkpoint  after step 100, 0s ago
          time        goodput 92.1%  training 51.5s, evaluation 2.0s, start 1.8s, load 0.1s, save 0.2s, recomputation 1.5s, down 1.0s  (58.1s in 2 attempts)

        rank  GPU     pid  process  phase     step   for  waits in
           0  GPU-0  4250  running  training   141  0.3s  -
           1  GPU-1  4251  running  training   141  0.3s  all_reduce #17 of 4194304 bytes
        ");
    }

    #[test]
    fn nodes_are_told_with_what_sets_them_apart() {
        assert_snapshot!(shown(|record| {
            let status = record.status.as_mut().unwrap();
            status.ranks[1].node = 1;
            let node = |(node, state, heard_s): (usize, &str, f64)| NodeStatus {
                node,
                host: format!("node-{}", node + 7),
                state: state.to_owned(),
                heard_s,
                ranks: 1,
            };
            let nodes = [
                (0, "member", 0.0),
                (1, "member", 12.0),
                (2, "spare", 0.3),
                (3, "lost", 90.0),
            ];
            status.nodes = nodes.map(node).to_vec();
        }), @r"
        my run: running, attempt 2
          step        142 of 320, loss 5.5800, 16.4k tok/s
          launcher    process 4241, told this 0s ago
          nodes       0 node-7, 1 node-8 (not heard of for 12s), 2 node-9 (spare), 3 node-10 (lost)
          checkpoint  after step 100, 0s ago
          time        goodput 92.1%  training 51.5s, evaluation 2.0s, start 1.8s, load 0.1s, save 0.2s, recomputation 1.5s, down 1.0s  (58.1s in 2 attempts)

        rank  node   pid  process  phase     step   for  waits in
           0     0  4250  running  training   141  0.3s  -
           1     1  4251  running  training   141  0.3s  -
        ");
    }

    #[test]
    fn a_rank_that_others_wait_for_is_marked() {
        assert_snapshot!(shown(|record| {
            let ranks = &mut record.status.as_mut().unwrap().ranks;
            for rank in ranks.iter_mut() {
                (rank.quiet_s, rank.phase_s) = (41.0, 41.2);
            }
            ranks[0].waits_in = Some("all_reduce #17 of 4194304 bytes".to_owned());
            ranks[1].process = "stopped".to_owned();
            record.now = BEGAN + 68.0;
        }), @"
        my run: running, attempt 2
          step        142 of 320, loss 5.5800, 16.4k tok/s
          launcher    process 4241, told this 8s ago: it is held up, or stopped
          checkpoint  after step 100, 0s ago
          time        goodput 92.1%  training 51.5s, evaluation 2.0s, start 1.8s, load 0.1s, save 0.2s, recomputation 1.5s, down 1.0s  (58.1s in 2 attempts)

        rank   pid  process  phase     step  for  waits in
           0  4250  running  training   141  41s  all_reduce #17 of 4194304 bytes
           1  4251  stopped  training   141  41s  -                                <- quiet for 41s, others wait for it
        ");
    }

    #[test]
    fn a_rank_that_is_quieter_than_the_others_is_marked() {
        let rank = |rank, quiet_s| RankStatus {
            rank,
            quiet_s,
            ..samples::status(RunState::Running).ranks[0].clone()
        };
        let all = [rank(0, 0.5), rank(1, 30.0), rank(2, 1.0), rank(3, 4.0)];
        let remarks: Vec<_> = all.iter().map(|it| remark(it, &all)).collect();
        assert_eq!(
            remarks,
            [None, Some("<- quiet for 30s".to_owned()), None, None]
        );
        let all = [rank(0, 30.0), rank(1, 31.0)];
        assert_eq!(remark(&all[0], &all), None, "nobody is apart");
        assert_eq!(remark(&all[0], &all[..1]), None);
    }

    #[test]
    fn a_launcher_that_is_gone_or_elsewhere() {
        assert_snapshot!(shown(|record| record.launcher = Launcher::Gone), @"
        my run: lost, attempt 2
          step        142 of 320, loss 5.5800
          launcher    process 4241 is gone, told this 0s ago; go on with `cordee train --resume`
          checkpoint  after step 100, 0s ago
          time        goodput 92.1%  training 51.5s, evaluation 2.0s, start 1.8s, load 0.1s, save 0.2s, recomputation 1.5s, down 1.0s  (58.1s in 2 attempts)

        its ranks, when they were last seen:
        rank   pid  process  phase     step   for  waits in
           0  4250  running  training   141  0.3s  -
           1  4251  running  training   141  0.3s  -
        ");
        assert_snapshot!(shown(|record| record.launcher = Launcher::Unknown), @"
        my run: running, attempt 2
          step        142 of 320, loss 5.5800, 16.4k tok/s
          launcher    process 4241 on node-7, told this 0s ago; whether it is still there cannot be seen from here
          checkpoint  after step 100, 0s ago
          time        goodput 92.1%  training 51.5s, evaluation 2.0s, start 1.8s, load 0.1s, save 0.2s, recomputation 1.5s, down 1.0s  (58.1s in 2 attempts)

        rank   pid  process  phase     step   for  waits in
           0  4250  running  training   141  0.3s  -
           1  4251  running  training   141  0.3s  -
        ");
    }

    #[test]
    fn a_run_that_failed_says_why() {
        assert_snapshot!(shown(|record| {
            record.status = Some(samples::status(RunState::Ended));
            record.attempts = samples::attempts(Some(Outcome::Failed));
            record.launcher = Launcher::Gone;
            record.checkpoints.clear();
        }), @"
        my run: failed, attempt 2
          step        142 of 320, loss 5.5800
          launcher    has ended, told this 0s ago
          checkpoint  none
          time        goodput 90.3%  training 1m03s, evaluation 4.0s, start 1.5s, load 0.2s, save 0.5s, recomputation 3.0s, down 2.0s  (1m14s in 2 attempts)
          why         rank 1 (node-7, pid 4243) was killed by SIGKILL (signal 9)
        ");
    }
}
