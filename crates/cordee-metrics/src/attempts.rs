//! What the launcher saw of a run: every attempt at it, how it ended, and where the time went.
//!
//! Steps and events are of the training, and a resume cuts those that happen again. These records are of
//! what happened to the processes, and are never cut.

use std::{
    io,
    ops::{Add, AddAssign},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{JsonLines, MetricsError, cut::cut_from, documented::documented, read::read_lines};

/// Name of the file of attempts in a run directory.
pub const ATTEMPTS_FILE: &str = "attempts.jsonl";
/// Name of the file that says how a run stands.
pub const STATUS_FILE: &str = "status.json";

documented! {
    /// Something that happened to an attempt: a line of `attempts.jsonl`.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct AttemptRecord {
        /// When, in seconds since 1970.
        pub time: f64,
        /// Which attempt at the run it is, from 1; it goes on over resumes.
        pub attempt: usize,
        /// What happened, and the fields below.
        #[serde(flatten)]
        pub event: AttemptEvent,
    }
}

documented! {
    /// What happened to an attempt.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "event")]
    pub enum AttemptEvent {
        /// Ranks were started.
        #[serde(rename = "started")]
        Started {
            /// The machine.
            host: String,
            /// The machines of all nodes, where there may be several.
            #[serde(default)]
            hosts: Vec<String>,
            /// Process of the launcher.
            launcher_pid: u32,
            /// Processes of the ranks of this machine, by rank.
            pids: Vec<u32>,
            /// Optimizer steps done before.
            step: u64,
            /// The checkpoint that it goes on from.
            checkpoint: Option<String>,
            /// What the machine does not allow the launcher, such as control groups.
            #[serde(default)]
            remarks: Vec<String>,
        },
        /// No rank is left.
        #[serde(rename = "ended")]
        Ended {
            /// How: `done`, `stopped`, `interrupted`, `failed`, or `lost` where the launcher itself was
            /// gone, which the next one writes down.
            outcome: Outcome,
            /// Optimizer steps done.
            step: u64,
            /// Why it failed.
            failure: Option<FailureRecord>,
            /// What was done about it: `restart`, or why not.
            decision: Option<String>,
            /// Where the time of the attempt went, what passed since the one before included.
            ledger: Ledger,
        },
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The run is at its end.
    Done,
    /// On request, with a checkpoint.
    Stopped,
    /// On request, at once.
    Interrupted,
    /// A rank failed or hung.
    Failed,
    /// The launcher was gone.
    Lost,
}

documented! {
    /// Why an attempt failed.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct FailureRecord {
        /// The rank that is to blame; absent where it is none alone.
        pub rank: Option<usize>,
        /// Its process.
        pub pid: Option<u32>,
        /// Its GPU, where it has one.
        pub device: Option<String>,
        /// The node that it was on, where there are several.
        #[serde(default)]
        pub node: Option<usize>,
        /// The machine of that node.
        #[serde(default)]
        pub host: Option<String>,
        /// What kind of failure: `signal 9`, `exit 1`, `hang`, ...
        pub class: String,
        /// Where: what the rank said, or the collective, without what differs from time to time.
        pub place: String,
        /// The code that the run would exit with.
        pub code: u8,
        /// What was shown of it.
        pub verdict: String,
    }
}

documented! {
    /// Where time went, in seconds. The parts add up to the whole.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
    pub struct Ledger {
        /// Optimizer steps, each counted the first time it was done.
        pub training_s: f64,
        /// Validations.
        pub evaluation_s: f64,
        /// From the launch to the loading, and from the last step to the end: data, processes, devices, ranks meeting.
        pub start_s: f64,
        /// Weights and moments into memory.
        pub load_s: f64,
        /// Steps that waited for a checkpoint.
        pub save_s: f64,
        /// Steps done again after a failure.
        pub recomputation_s: f64,
        /// From the last that a failed attempt got done to the next attempt.
        pub down_s: f64,
    }
}

impl Ledger {
    /// What it is made of: the name of each part and its seconds, in the order of use.
    pub fn parts(&self) -> [(&'static str, f64); 7] {
        let Self {
            training_s,
            evaluation_s,
            start_s,
            load_s,
            save_s,
            recomputation_s,
            down_s,
        } = *self;
        [
            ("training", training_s),
            ("evaluation", evaluation_s),
            ("start", start_s),
            ("load", load_s),
            ("save", save_s),
            ("recomputation", recomputation_s),
            ("down", down_s),
        ]
    }

    /// All of it.
    pub fn total_s(&self) -> f64 {
        self.parts().into_iter().map(|(_, seconds)| seconds).sum()
    }

    /// The share of it that trained or validated: the effective training time.
    pub fn effective(&self) -> f64 {
        (self.training_s + self.evaluation_s) / self.total_s()
    }
}

impl Add for Ledger {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            training_s: self.training_s + other.training_s,
            evaluation_s: self.evaluation_s + other.evaluation_s,
            start_s: self.start_s + other.start_s,
            load_s: self.load_s + other.load_s,
            save_s: self.save_s + other.save_s,
            recomputation_s: self.recomputation_s + other.recomputation_s,
            down_s: self.down_s + other.down_s,
        }
    }
}

impl AddAssign for Ledger {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

documented! {
    /// How a run stands: `status.json`, written anew every second while ranks run.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct RunStatus {
        /// When it was written, in seconds since 1970.
        pub time: f64,
        /// The machine of the launcher.
        pub host: String,
        /// Process of the launcher.
        pub launcher_pid: u32,
        /// Which attempt at the run it is, from 1.
        pub attempt: usize,
        /// What the launcher is doing.
        pub state: RunState,
        /// Optimizer steps that the run ends after.
        pub steps: u64,
        /// Every rank.
        pub ranks: Vec<RankStatus>,
        /// Every machine of a job on several; empty on one.
        #[serde(default)]
        pub nodes: Vec<NodeStatus>,
        /// Where the time of this attempt has gone so far.
        pub ledger: Ledger,
    }
}

/// What a launcher is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Ranks run.
    Running,
    /// Ranks were asked to stop.
    Stopping,
    /// A rank failed, and the next attempt is on its way.
    Restarting,
    /// No rank runs, and none will.
    Ended,
}

documented! {
    /// How a rank stands.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct RankStatus {
        /// The rank.
        pub rank: usize,
        /// The node that it runs on, as `nodes` counts them.
        #[serde(default)]
        pub node: usize,
        /// Its process.
        pub pid: u32,
        /// Its GPU, where it has one.
        pub device: Option<String>,
        /// What the system says of the process: `running`, `sleeping`, `stopped`, `stuck in the kernel`, `ended`.
        pub process: String,
        /// What it is doing.
        pub phase: String,
        /// The step that it is at.
        pub step: u64,
        /// Seconds since it began to do that.
        pub phase_s: f64,
        /// Seconds since it last got anything done.
        pub quiet_s: f64,
        /// The collective that it waits in, such as `all_reduce #17 of 4194304 bytes`.
        pub waits_in: Option<String>,
    }
}

documented! {
    /// How a machine of a job on several stands.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct NodeStatus {
        /// Its number in the job.
        pub node: usize,
        /// Its name.
        pub host: String,
        /// What it is to the job: `member`, `spare`, `waiting` or `lost`.
        pub state: String,
        /// Seconds since it was last heard of.
        pub heard_s: f64,
        /// Ranks that it runs.
        pub ranks: usize,
    }
}

/// The file of attempts of a run.
#[derive(Debug)]
pub struct Attempts {
    lines: JsonLines,
}

impl Attempts {
    /// Where it lies.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join(ATTEMPTS_FILE)
    }

    /// Opens it to write to its end. Half a line that a killed launcher left goes.
    pub fn open(run_dir: &Path) -> Result<Self, MetricsError> {
        let path = Self::path(run_dir);
        cut_from(&path, u64::MAX).map_err(MetricsError::Open)?;
        JsonLines::open(&path).map(|lines| Self { lines })
    }

    /// Writes a record. What the disk refuses is kept and tried again with the next.
    pub fn push(&mut self, record: &AttemptRecord) -> Result<(), MetricsError> {
        self.lines.push(record);
        self.lines.flush()
    }

    /// All records of a run; none where it has none.
    pub fn read(run_dir: &Path) -> Result<Vec<AttemptRecord>, MetricsError> {
        match read_lines(&Self::path(run_dir)) {
            Err(MetricsError::Open(error)) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            read => read,
        }
    }
}

impl AttemptRecord {
    /// A record of now.
    pub fn now(attempt: usize, event: AttemptEvent) -> Self {
        Self {
            time: crate::unix_time(),
            attempt,
            event,
        }
    }
}

impl RunStatus {
    /// Replaces the status of a run, whole or not at all. It is not synced: after a crash of the
    /// machine nobody asks for it.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let (path, temporary) = (run_dir.join(STATUS_FILE), run_dir.join("status.new"));
        let text = serde_json::to_vec(self).expect("a status has string keys only");
        fs_err::write(&temporary, text)?;
        fs_err::rename(&temporary, &path)
    }

    /// The last that was written; `None` where there is none, or none that this version reads.
    pub fn read(run_dir: &Path) -> Option<Self> {
        let text = fs_err::read(run_dir.join(STATUS_FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_ledger_add_up() {
        let ledger = Ledger {
            training_s: 6.0,
            evaluation_s: 1.0,
            start_s: 0.5,
            load_s: 0.25,
            save_s: 0.25,
            recomputation_s: 1.5,
            down_s: 0.5,
        };
        let close =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}");
        close(ledger.total_s(), 10.0);
        close(ledger.effective(), 0.7);
        close((ledger + ledger).total_s(), 20.0);
        assert!(Ledger::default().effective().is_nan());
    }

    /// `cordee status` reads runs that an older launcher trains.
    #[test]
    fn a_status_from_before_there_were_nodes_reads() {
        let text = r#"{"time":1.5,"host":"a","launcher_pid":7,"attempt":1,"state":"running","steps":9,"ranks":[
            {"rank":1,"pid":8,"device":null,"process":"running","phase":"training","step":3,"phase_s":0.1,
            "quiet_s":0.2,"waits_in":null}],"ledger":{"training_s":1.0,"evaluation_s":0.0,"start_s":0.0,
            "load_s":0.0,"save_s":0.0,"recomputation_s":0.0,"down_s":0.0}}"#;
        let status: RunStatus = serde_json::from_str(text).unwrap();
        assert_eq!((status.ranks[0].node, status.nodes), (0, Vec::new()));
    }

    #[test]
    fn attempts_read_back_and_half_a_line_goes() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Attempts::read(folder.path()).unwrap(), []);
        let started = AttemptRecord::now(
            1,
            AttemptEvent::Started {
                host: "node".to_owned(),
                hosts: Vec::new(),
                launcher_pid: 7,
                pids: vec![8, 9],
                step: 0,
                checkpoint: None,
                remarks: Vec::new(),
            },
        );
        let ended = AttemptRecord::now(
            1,
            AttemptEvent::Ended {
                outcome: Outcome::Failed,
                step: 12,
                failure: None,
                decision: Some("restart".to_owned()),
                ledger: Ledger::default(),
            },
        );
        Attempts::open(folder.path())
            .unwrap()
            .push(&started)
            .unwrap();
        let path = Attempts::path(folder.path());
        let text = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, format!("{text}{{\"time\":")).unwrap();
        Attempts::open(folder.path()).unwrap().push(&ended).unwrap();
        assert_eq!(Attempts::read(folder.path()).unwrap(), [started, ended]);
    }
}
