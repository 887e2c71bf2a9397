//! A run that was never run, to test with.

use std::path::Path;

use cordee_metrics::{
    AttemptEvent, AttemptRecord, FailureRecord, Ledger, Outcome, RankStatus, RunState, RunStatus,
};

use super::RunRecord;
use crate::run_dir::RunDir;

/// When everything happened.
pub(crate) const BEGAN: f64 = 1_790_000_000.0;

pub(crate) const CONFIG: &str = r#"
[model]
family = "llama"
dim = 192
layers = 4
heads = 6
kv_heads = 2
ffn = 512

[data]
vocab_size = 2048

[train]
steps = 320
"#;

pub(crate) const ENVIRONMENT: &str = r#"{
  "attempt": 2, "ranks": 2, "host": "node-7", "device": "cpu", "version": "0.0.0",
  "started": "2026-09-21T14:13:20+00:00[+00:00]",
  "command": ["/opt/cordee", "train", "configs/quickstart.toml", "--run-dir", "runs/my run"]
}"#;

pub(crate) fn ledger() -> Ledger {
    Ledger {
        training_s: 31.5,
        evaluation_s: 2.0,
        start_s: 0.75,
        load_s: 0.1,
        save_s: 0.25,
        recomputation_s: 1.5,
        down_s: 1.0,
    }
}

pub(crate) fn failure() -> FailureRecord {
    FailureRecord {
        rank: Some(1),
        pid: Some(4243),
        device: None,
        node: None,
        host: None,
        class: "signal 9".to_owned(),
        place: "all_reduce".to_owned(),
        code: 137,
        verdict: "rank 1 (node-7, pid 4243) was killed by SIGKILL (signal 9)\n  log: rank-001.log"
            .to_owned(),
    }
}

/// Two attempts: the first failed and was restarted, the second is `outcome` or still runs.
pub(crate) fn attempts(outcome: Option<Outcome>) -> Vec<AttemptRecord> {
    let record = |seconds: f64, attempt, event| AttemptRecord {
        time: BEGAN + seconds,
        attempt,
        event,
    };
    let started = |pids: [u32; 2], step, checkpoint: Option<&str>| AttemptEvent::Started {
        host: "node-7".to_owned(),
        hosts: Vec::new(),
        launcher_pid: 4241,
        pids: pids.to_vec(),
        step,
        checkpoint: checkpoint.map(str::to_owned),
        remarks: vec!["no control groups: the file system of them is read-only".to_owned()],
    };
    let ended = |outcome, step, decision: Option<&str>| AttemptEvent::Ended {
        outcome,
        step,
        failure: (outcome == Outcome::Failed).then(failure),
        decision: decision.map(str::to_owned),
        ledger: ledger(),
    };
    let mut records = vec![
        record(0.0, 1, started([4242, 4243], 0, None)),
        record(37.1, 1, ended(Outcome::Failed, 142, Some("restart"))),
        record(
            38.1,
            2,
            started([4250, 4251], 100, Some("checkpoints/step-000000100")),
        ),
    ];
    let decision = Some("the same failure again, and no checkpoint between");
    records.extend(outcome.map(|outcome| {
        let decision = decision.filter(|_| outcome == Outcome::Failed);
        record(75.2, 2, ended(outcome, 320, decision))
    }));
    records
}

pub(crate) fn status(state: RunState) -> RunStatus {
    let rank = |rank: usize| RankStatus {
        rank,
        node: 0,
        pid: 4250 + rank as u32,
        device: None,
        process: "running".to_owned(),
        phase: "training".to_owned(),
        step: 141,
        phase_s: 0.3,
        quiet_s: 0.1,
        waits_in: None,
    };
    RunStatus {
        time: BEGAN + 60.0,
        host: "node-7".to_owned(),
        launcher_pid: 4241,
        attempt: 2,
        state,
        steps: 320,
        ranks: vec![rank(0), rank(1)],
        nodes: Vec::new(),
        ledger: Ledger {
            training_s: 20.0,
            start_s: 1.0,
            ..Ledger::default()
        },
    }
}

/// Lines of `metrics.jsonl` up to a step.
pub(crate) fn metrics(last: u64) -> String {
    let line = |step: u64| {
        format!(
            "{{\"step\":{step},\"time\":{},\"loss\":{},\"grad_norm\":0.9,\"clipped\":false,\"lr\":0.0006,\
             \"tokens\":{},\"tokens_trained\":4096,\"samples\":{},\"epoch\":0.1,\"step_s\":0.25,\"data_s\":0.0,\
             \"comm_s\":0.01,\"comm_exposed_s\":0.004,\"tokens_per_s\":16384.0,\"host_rss_bytes\":114843648}}\n",
            BEGAN + step as f64 / 4.0,
            7.0 - step as f64 / 100.0,
            4096 * step,
            16 * step,
        )
    };
    (1..=last).map(line).collect()
}

/// Lines of `events.jsonl` of a run that has come to step 200.
pub(crate) fn events() -> String {
    let lines = [
        r#"{"step":0,"time":1790000001.0,"event":"run_started","ranks":2,"steps":320}"#,
        r#"{"step":100,"time":1790000026.0,"event":"checkpoint_saved","path":"/runs/x/checkpoints/step-000000100","bytes":23630080,"seconds":0.1}"#,
        r#"{"step":100,"time":1790000027.0,"event":"evaluation","loss":5.5,"seconds":1.2,"sources":[{"name":"english","loss":5.6,"bits_per_byte":2.5,"unigram_bits_per_byte":2.6},{"name":"french","loss":5.4}]}"#,
        r#"{"step":142,"time":1790000037.1,"event":"failed","rank":1,"reason":"rank 1 was killed"}"#,
        r#"{"step":100,"time":1790000039.0,"event":"resumed","path":"/runs/x/checkpoints/step-000000100","ranks":2,"steps":320}"#,
    ];
    format!("{}\n", lines.join("\n"))
}

/// A run directory with all of this, in `root`.
pub(crate) fn write(root: &Path, name: &str) -> RunDir {
    let path = root.join(name);
    let write = |name: &str, text: &str| fs_err::write(path.join(name), text).unwrap();
    fs_err::create_dir_all(path.join("checkpoints/step-000000100")).unwrap();
    write("config.toml", CONFIG);
    write("env.json", ENVIRONMENT);
    write("metrics.jsonl", &metrics(142));
    write("events.jsonl", &events());
    let run = RunDir::meant(Some(&path)).unwrap();
    write_attempts(&run, &attempts(None));
    status(RunState::Running).write(run.path()).unwrap();
    run
}

pub(crate) fn write_attempts(run: &RunDir, records: &[AttemptRecord]) {
    let lines = records
        .iter()
        .map(|it| serde_json::to_string(it).unwrap() + "\n");
    let text: String = lines.collect();
    fs_err::write(run.path().join("attempts.jsonl"), text).unwrap();
}

/// The run, read a little after its status was written.
pub(crate) fn record(root: &Path) -> RunRecord {
    let mut record = RunRecord::read(write(root, "my run"));
    record.now = BEGAN + 60.4;
    record
}
