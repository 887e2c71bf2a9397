//! A launch: what to start, and the call that starts it and sees it through.

use std::any::Any;
use std::ffi::OsString;
use std::io::pipe;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, getpid};
use rustix::system::uname;
use rustix::thread::gettid;

use crate::deaths::Deaths;
use crate::log::{self, RankLog};
use crate::member::Member;
use crate::notice::{Inlet, Notice};
use crate::orphans::Orphans;
use crate::out_of_memory::OutOfMemoryKills;
use crate::process::Identity;
use crate::reader::Reader;
use crate::spawn::{Provision, open_descriptors, spawn};
use crate::supervise::{Event, Supervisor};
use crate::worker_group::{WorkerGroups, clear_leftovers};
use crate::{
    Deadlines, LaunchError, Observer, Outcome, Pages, Placement, StepTimes, StopRequests, threads,
};

/// What to start on this node.
#[derive(Debug)]
pub struct Launch {
    /// The worker's program.
    pub program: PathBuf,
    /// Its arguments, the same for every rank.
    pub arguments: Vec<OsString>,
    /// Number of ranks on this node. By "rank" everything here means one of all, counted over all nodes;
    /// lists that go by rank are of this node's.
    pub ranks: usize,
    /// Where they are among those of other nodes.
    pub world: World,
    /// Identifier of the run.
    pub run_id: String,
    /// How often the run has been started, this time included. Written into logs that hold earlier
    /// attempts.
    pub attempt: usize,
    /// Where the logs go: `rank-000.log` and so on, appended to. Made if it is not there.
    pub log_dir: PathBuf,
    /// Open files that every worker gets, with the environment variable that holds the number.
    pub inherit: Vec<(&'static str, OwnedFd)>,
    /// What one worker each gets, by rank; a worker that has none here gets nothing else.
    pub own: Vec<Own>,
    /// Environment variables on top of our own environment and the rank's variables.
    pub environment: Vec<(OsString, OsString)>,
    /// Where each rank runs, by rank. A rank that has none here runs where the launcher does.
    pub placement: Vec<Option<Placement>>,
    /// Host and port where ranks meet over the network, for programs that need one; `None` where they
    /// meet in shared memory alone, and then the port is 0.
    pub master: Option<(String, u16)>,
    /// How often the run may be restarted, for workers that ask.
    pub max_restarts: usize,
    /// How long workers may take to stop after the first request before they are killed; `None` for
    /// as long as it takes.
    pub grace: Option<Duration>,
    /// What the device of each rank is called, by rank; empty where they have none.
    pub devices: Vec<String>,
    /// Where workers say how they stand; without them, workers are asked to stop by `SIGTERM`, and
    /// nobody can tell whether they hang.
    pub pages: Option<Pages>,
    /// How hangs are found out, by what the pages say.
    pub watch: Option<Watch>,
}

/// What one worker gets and no other.
#[derive(Debug, Default)]
pub struct Own {
    /// Open files, with the environment variable that holds the number.
    pub inherit: Vec<(&'static str, OwnedFd)>,
    /// Its standard input, in place of none: the socket at which others reach it, as inetd would give it.
    pub stdin: Option<OwnedFd>,
}

/// All ranks of a job, as one node sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// How many there are.
    pub size: usize,
    /// The first of this node.
    pub first_rank: usize,
    /// Index of the node.
    pub node: usize,
    /// Number of nodes.
    pub nodes: usize,
    /// The place of the first among the ranks of this machine, which is 0 unless others start some there.
    pub first_local_rank: usize,
    /// Ranks on this machine.
    pub local_size: usize,
}

impl World {
    /// So many ranks, all on one node.
    pub const fn of_one_node(ranks: usize) -> Self {
        Self {
            size: ranks,
            first_rank: 0,
            node: 0,
            nodes: 1,
            first_local_rank: 0,
            local_size: ranks,
        }
    }
}

/// How hangs are found out.
#[derive(Clone, Debug)]
pub struct Watch {
    /// How long ranks may get nothing done.
    pub deadlines: Deadlines,
    /// What earlier attempts have shown of the run's steps; what this one shows is added.
    pub times: Arc<Mutex<StepTimes>>,
}

/// Starts one worker per rank and sees them through to the end of the last.
///
/// Must be called from the main thread. The kernel kills a worker when its launcher dies, but what it
/// watches is the thread that started the worker (`PR_SET_PDEATHSIG` in prctl(2)); only the main
/// thread is sure to live as long as the process.
///
/// - The first rank that fails ends the run: after 200 ms in which others may fail too, the rest is
///   killed. Exit codes 0 and 75 are no failures. The cause is the rank that ended first. A rank that
///   fell because of another says so in its `Failed` message (`blames`); it
///   is named only if no other rank failed, and the others get up to 2 s for that.
/// - Ranks that hang end the run, too: those to blame are named, and all are killed.
/// - The first stop request asks the workers to stop, on their pages or by `SIGTERM`; the second kills
///   them.
/// - No worker is left when this returns, except one that the kernel cannot kill; the report
///   names it.
///
/// Every worker leads a process group of its own and, where the system lets us make one, is in a
/// control group of its own. What it starts within them is killed when the worker ends; what left
/// the process group and lost its parent, when the last worker has ended. See
/// [`Observer::remark`] for what is not possible on a machine.
pub fn run(
    launch: &Launch,
    observer: &mut dyn Observer,
    stop: &StopRequests,
) -> Result<Outcome, LaunchError> {
    if gettid() != getpid() {
        return Err(LaunchError::NotMainThread);
    }
    if launch.ranks == 0 {
        return Err(LaunchError::NoRanks);
    }
    if stop.count() > 0 {
        return Ok(Outcome::Interrupted);
    }
    fs_err::create_dir_all(&launch.log_dir).map_err(|source| LaunchError::Log {
        path: launch.log_dir.clone(),
        source,
    })?;
    let inlet = Inlet::new();
    let supervision = Supervision::start(launch, &inlet, stop)?;
    for (local, pid) in supervision.pids.iter().enumerate() {
        let rank = launch.world.first_rank + local;
        observer.started(rank, pid.as_raw_nonzero().get().unsigned_abs());
    }
    for remark in &supervision.remarks {
        observer.remark(remark);
    }
    loop {
        match inlet.next() {
            Notice::Message { rank, message } => observer.message(rank, message),
            Notice::Lines {
                rank,
                stream,
                lines,
            } => {
                lines
                    .split_terminator('\n')
                    .for_each(|line| observer.line(rank, stream, line));
            }
            Notice::LinesSkipped { rank, lines } => observer.lines_skipped(rank, lines),
            Notice::LogFailed { rank, error } => {
                observer.log_failed(rank, &log::path(&launch.log_dir, rank), &error);
            }
            Notice::Ended {
                rank,
                ending,
                by_launcher,
            } => observer.ended(rank, ending, by_launcher),
            Notice::Finished(Ok(outcome)) => return Ok(outcome),
            Notice::Finished(Err(panic)) => resume_unwind(panic),
        }
    }
}

/// The supervisor's thread and the one that hears stop requests. Dropped early, it kills the workers:
/// an observer that panics leaves none behind.
struct Supervision {
    pids: Vec<Pid>,
    remarks: Vec<String>,
    events: Sender<Event>,
    supervisor: Option<JoinHandle<()>>,
    stop: StopRequests,
    stop_listener: Option<JoinHandle<()>>,
    finished: Arc<AtomicBool>,
}

impl Supervision {
    fn start(launch: &Launch, inlet: &Inlet, stop: &StopRequests) -> Result<Self, LaunchError> {
        let out_of_memory = OutOfMemoryKills::watch();
        let started = Instant::now();
        let (events, received) = channel();
        let (mut orphans, mut remarks) = prepare();
        let members = start_members(launch, inlet, &events, &mut orphans, &mut remarks)?;
        let mut supervision = Self {
            pids: members.iter().map(Member::pid).collect(),
            remarks,
            events,
            supervisor: None,
            stop: stop.clone(),
            stop_listener: None,
            finished: Arc::default(),
        };
        let supervisor = Supervisor {
            members,
            events: received,
            notices: inlet.sender(),
            stop: stop.clone(),
            grace: launch.grace,
            started,
            host: uname().nodename().to_string_lossy().into_owned(),
            first_rank: launch.world.first_rank,
            out_of_memory,
            devices: launch.devices.clone(),
            pages: launch.pages.as_ref().map_or_else(Vec::new, Pages::all),
            watch: launch.watch.clone(),
            watchdog: None,
            log_dir: launch.log_dir.clone(),
            attempt: launch.attempt,
            hang: None,
            orphans,
        };
        let notices = inlet.sender();
        let supervise = move || {
            let outcome: Result<Outcome, Box<dyn Any + Send>> =
                catch_unwind(AssertUnwindSafe(|| supervisor.run()));
            let _ = notices.send(Notice::Finished(outcome));
        };
        let failed = |source| LaunchError::Supervision { source };
        supervision.supervisor = Some(threads::start("supervisor", supervise).map_err(failed)?);
        let (stop, finished, events) = (
            stop.clone(),
            Arc::clone(&supervision.finished),
            supervision.events.clone(),
        );
        // A request made before the listener listens is not lost: the bell keeps ringing.
        let listen = move || {
            stop.listen(&finished, || {
                let _ = events.send(Event::StopRequested);
            });
        };
        supervision.stop_listener = Some(threads::start("stop requests", listen).map_err(failed)?);
        Ok(supervision)
    }
}

impl Drop for Supervision {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Abandoned);
        self.stop.dismiss(&self.finished);
        for thread in [self.supervisor.take(), self.stop_listener.take()]
            .into_iter()
            .flatten()
        {
            // A panic of the supervisor was passed on in its last notice.
            let _ = thread.join();
        }
    }
}

/// Defence against processes that outlive their run, as far as this machine allows it.
fn prepare() -> (Orphans, Vec<String>) {
    let mut remarks = Vec::new();
    let Some(identity) = Identity::own() else {
        remarks.push(
            "what workers start is not followed: /proc is not that of this process".to_owned(),
        );
        return (Orphans::adopt(None, None), remarks);
    };
    let leftovers = clear_leftovers(&identity);
    remarks.extend(leftovers.remark());
    let groups = WorkerGroups::create(&identity)
        .map_err(|why| {
            remarks.push(format!("workers get no control groups of their own: {why}"));
        })
        .ok();
    (Orphans::adopt(Some(identity), groups), remarks)
}

fn start_members(
    launch: &Launch,
    inlet: &Inlet,
    events: &Sender<Event>,
    orphans: &mut Orphans,
    remarks: &mut Vec<String>,
) -> Result<Vec<Member>, LaunchError> {
    let foreign = open_descriptors();
    let mut members = Vec::with_capacity(launch.ranks);
    let mut deaths = Deaths::new();
    for local in 0..launch.ranks {
        let rank = launch.world.first_rank + local;
        let path = log::path(&launch.log_dir, rank);
        let log = open_log(&path, launch.attempt)?;
        let resource = |what| move |source| LaunchError::Resource { what, rank, source };
        let (alive, lifeline) = pipe().map_err(resource("a pipe"))?;
        let group = orphans.groups().and_then(|groups| groups.group(local).ok());
        let provision = Provision {
            foreign: &foreign,
            mark: orphans.mark(local),
            entrance: group.as_ref().and_then(|group| group.entrance().ok()),
        };
        let (child, pipes) = spawn(launch, local, &provision)?;
        orphans.add_worker(child.id());
        let group = group.filter(|group| group.holds(child.id()));
        if orphans.groups().is_some() && group.is_none() {
            remarks.push(format!("rank {rank} could not enter a control group"));
        }
        let member = Member::new(child, path, group);
        deaths.add(member.pid(), lifeline);
        members.push(member);
        let reader = Reader::new(pipes, alive, log, inlet.outlet(rank));
        let drained = events.clone();
        let read = move || {
            let words = reader.run();
            let _ = drained.send(Event::Drained { local, words });
        };
        threads::start(&format!("read {rank}"), read).map_err(resource("a thread"))?;
    }
    deaths
        .start(events)
        .map_err(|source| LaunchError::Supervision { source })?;
    Ok(members)
}

fn open_log(path: &Path, attempt: usize) -> Result<RankLog, LaunchError> {
    RankLog::open(path, attempt).map_err(|source| LaunchError::Log {
        path: path.to_owned(),
        source,
    })
}
