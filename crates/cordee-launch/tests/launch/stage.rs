//! What every test needs: a launch of this binary as workers, and an observer that remembers.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cordee_launch::{
    Ending, FailureReport, Launch, LaunchError, Observer, Outcome, StopRequests, Stream, World, run,
};
use cordee_protocol::WorkerMessage;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tempfile::TempDir;

/// Remembers all it is told.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) pids: Vec<u32>,
    pub(crate) messages: Vec<(usize, WorkerMessage)>,
    pub(crate) lines: Vec<(usize, Stream, String)>,
    pub(crate) skipped: u64,
    pub(crate) log_failures: Vec<(usize, PathBuf, io::ErrorKind)>,
    pub(crate) ended: Vec<(usize, Ending, bool)>,
    pub(crate) remarks: Vec<String>,
}

impl Observer for Recorder {
    fn started(&mut self, rank: usize, pid: u32) {
        assert_eq!(rank, self.pids.len());
        self.pids.push(pid);
    }

    fn message(&mut self, rank: usize, message: WorkerMessage) {
        self.messages.push((rank, message));
    }

    fn line(&mut self, rank: usize, stream: Stream, line: &str) {
        self.lines.push((rank, stream, line.to_owned()));
    }

    fn lines_skipped(&mut self, _: usize, lines: u64) {
        self.skipped += lines;
    }

    fn log_failed(&mut self, rank: usize, path: &Path, error: &io::Error) {
        self.log_failures
            .push((rank, path.to_owned(), error.kind()));
    }

    fn remark(&mut self, text: &str) {
        self.remarks.push(text.to_owned());
    }

    fn ended(&mut self, rank: usize, ending: Ending, by_launcher: bool) {
        self.ended.push((rank, ending, by_launcher));
    }
}

impl Recorder {
    pub(crate) fn lines_of(&self, rank: usize, stream: Stream) -> Vec<&str> {
        let wanted = self
            .lines
            .iter()
            .filter(|(of, from, _)| (*of, *from) == (rank, stream));
        wanted.map(|(_, _, line)| line.as_str()).collect()
    }
}

/// A launch in a directory of its own.
pub(crate) struct Stage {
    pub(crate) launch: Launch,
    pub(crate) directory: TempDir,
}

impl Stage {
    /// Workers that behave as [`crate::worker`] understands the words.
    pub(crate) fn new(world_size: usize, behaviour: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let launch = launch_in(directory.path(), world_size, behaviour);
        Self { launch, directory }
    }

    /// A shell script in every rank.
    pub(crate) fn script(world_size: usize, shell: &str, script: &str) -> Self {
        let mut stage = Self::new(world_size, &[]);
        stage.launch.program = shell.into();
        stage.launch.arguments = vec!["-c".into(), script.into()];
        stage
    }

    pub(crate) fn log(&self, rank: usize) -> Vec<u8> {
        std::fs::read(self.launch.log_dir.join(format!("rank-{rank:03}.log"))).unwrap()
    }

    /// Runs without any stop request.
    pub(crate) fn run(&self) -> (Outcome, Recorder) {
        let mut recorder = Recorder::default();
        let outcome = self.run_with(&mut recorder, &StopRequests::new().unwrap());
        (outcome, recorder)
    }

    /// Runs, and sees that nothing of the run is left.
    pub(crate) fn run_with(&self, observer: &mut dyn Observer, stop: &StopRequests) -> Outcome {
        leaving_nothing(|| run(&self.launch, observer, stop).unwrap())
    }

    /// Runs what cannot be started.
    pub(crate) fn refused(&self) -> LaunchError {
        let stop = StopRequests::new().unwrap();
        leaving_nothing(|| run(&self.launch, &mut Recorder::default(), &stop).unwrap_err())
    }
}

pub(crate) fn launch_in(directory: &Path, world_size: usize, behaviour: &[&str]) -> Launch {
    Launch {
        program: std::env::current_exe().unwrap(),
        arguments: ["--as-worker"]
            .iter()
            .chain(behaviour)
            .map(Into::into)
            .collect(),
        ranks: world_size,
        world: World::of_one_node(world_size),
        own: Vec::new(),
        run_id: "test-run".to_owned(),
        attempt: 1,
        log_dir: directory.join("logs"),
        inherit: Vec::new(),
        environment: vec![("TEST_DIRECTORY".into(), directory.into())],
        placement: Vec::new(),
        master: None,
        max_restarts: 0,
        grace: None,
        devices: Vec::new(),
        pages: None,
        watch: None,
    }
}

pub(crate) fn failed(outcome: Outcome) -> FailureReport {
    match outcome {
        Outcome::Failed(report) => *report,
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// No process of ours is left, not even a zombie.
fn assert_no_children() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    assert_eq!(waitid(WaitId::All, options).unwrap_err(), Errno::CHILD);
}

/// Whether a process runs; one that has ended and was not reaped does not.
pub(crate) fn is_running(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    !stat.rsplit(')').next().unwrap().starts_with(" Z")
}

pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "waited too long until {what}"
        );
        sleep(Duration::from_millis(2));
    }
}

/// The number that a worker wrote into a file of the test's directory.
pub(crate) fn read_pid(path: &Path) -> u32 {
    let read = || std::fs::read_to_string(path).ok()?.trim().parse().ok();
    wait_until("a worker has written its pid", || read().is_some());
    read().unwrap()
}

/// Sees that neither a process, a zombie nor an open descriptor is left.
pub(crate) fn leaving_nothing<T>(what: impl FnOnce() -> T) -> T {
    let descriptors = open_descriptors();
    let result = what();
    assert_no_children();
    // Threads close their last ones a moment after they told the result.
    wait_until("descriptors are closed again", || {
        open_descriptors() == descriptors
    });
    result
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
