//! Who a worker is, what it gets, and that none is left.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cordee_launch::{
    LaunchError, Observer, Outcome, Placement, StopRequests, Stream, allowed_cpus, cpu_list, run,
};
use cordee_protocol::{WorkerMessage, names};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::Test;
use crate::orphans::skip;
use crate::stage::{
    Recorder, Stage, failed, is_running, launch_in, leaving_nothing, read_pid, wait_until,
};

pub(crate) const TESTS: &[Test] = &[
    (
        "processes::each_rank_knows_who_it_is",
        each_rank_knows_who_it_is,
    ),
    (
        "processes::a_placed_rank_runs_where_it_should",
        a_placed_rank_runs_where_it_should,
    ),
    (
        "processes::memory_comes_from_the_node_that_is_asked_for",
        memory_comes_from_the_node_that_is_asked_for,
    ),
    (
        "processes::only_meant_descriptors_reach_a_worker",
        only_meant_descriptors_reach_a_worker,
    ),
    (
        "processes::a_killed_launcher_leaves_no_worker",
        a_killed_launcher_leaves_no_worker,
    ),
    (
        "processes::a_panicking_observer_leaves_no_worker",
        a_panicking_observer_leaves_no_worker,
    ),
    (
        "processes::another_thread_is_refused",
        another_thread_is_refused,
    ),
    (
        "processes::a_child_that_keeps_the_pipes_holds_nobody_up",
        a_child_that_keeps_the_pipes_holds_nobody_up,
    ),
    (
        "processes::what_a_worker_leaves_in_its_group_is_killed",
        what_a_worker_leaves_in_its_group_is_killed,
    ),
    (
        "processes::a_finished_run_waits_for_nothing",
        a_finished_run_waits_for_nothing,
    ),
    (
        "processes::sixteen_workers_run_side_by_side",
        sixteen_workers_run_side_by_side,
    ),
];

fn each_rank_knows_who_it_is() {
    let mut stage = Stage::new(3, &["show-environment"]);
    stage
        .launch
        .environment
        .push(("NCCL_DEBUG".into(), "WARN".into()));
    stage.launch.attempt = 3;
    stage.launch.max_restarts = 5;
    stage.launch.master = Some(("10.0.0.7".to_owned(), 29_871));
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    for rank in 0..3 {
        let lines = recorder.lines_of(rank, Stream::Stdout);
        let own = rank.to_string();
        let expected = [
            (names::RANK, own.as_str()),
            (names::LOCAL_RANK, &own),
            (names::WORLD_SIZE, "3"),
            (names::LOCAL_WORLD_SIZE, "3"),
            (names::GROUP_RANK, "0"),
            (names::GROUP_WORLD_SIZE, "1"),
            (names::ROLE_NAME, "default"),
            (names::ROLE_RANK, &own),
            (names::ROLE_WORLD_SIZE, "3"),
            (names::MASTER_ADDR, "10.0.0.7"),
            (names::MASTER_PORT, "29871"),
            (names::RESTART_COUNT, "2"),
            (names::MAX_RESTARTS, "5"),
            (names::USE_AGENT_STORE, "False"),
            (names::RUN_ID, "test-run"),
            ("NCCL_DEBUG", "WARN"),
            ("stdin", "/dev/null"),
            ("leads_group", "true"),
        ];
        for (name, value) in expected {
            assert!(
                lines.contains(&format!("{name}={value}").as_str()),
                "{name} of rank {rank}: {lines:#?}"
            );
        }
        assert!(
            std::env::var_os("PATH").is_none()
                || lines.iter().any(|line| line.starts_with("PATH="))
        );
    }
}

fn a_placed_rank_runs_where_it_should() {
    let allowed = allowed_cpus();
    let last = *allowed.last().unwrap();
    let mut stage = Stage::script(2, "grep", "");
    stage.launch.arguments = ["Cpus_allowed_list", "/proc/self/status"]
        .map(Into::into)
        .to_vec();
    stage.launch.placement = vec![
        None,
        Some(Placement {
            cpus: vec![last],
            memory_node: None,
        }),
    ];
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    let line = |rank| recorder.lines_of(rank, Stream::Stdout)[0].replace('\t', " ");
    assert_eq!(
        line(0),
        format!("Cpus_allowed_list: {}", cpu_list(&allowed))
    );
    assert_eq!(line(1), format!("Cpus_allowed_list: {last}"));
}

fn memory_comes_from_the_node_that_is_asked_for() {
    // Every Linux with NUMA has a node 0; the kernel shows each mapping's policy.
    let mut stage = Stage::script(1, "head", "");
    stage.launch.arguments = ["-n1", "/proc/self/numa_maps"].map(Into::into).to_vec();
    stage.launch.placement = vec![Some(Placement {
        cpus: Vec::new(),
        memory_node: Some(0),
    })];
    if !Path::new("/proc/self/numa_maps").exists() {
        return skip("this kernel knows no NUMA");
    }
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    let lines = recorder.lines_of(0, Stream::Stdout);
    if !lines[0].contains("prefer") {
        return skip("the policy of memory cannot be set here");
    }
    assert!(lines[0].contains(" prefer:0 "), "{lines:?}");
}

fn only_meant_descriptors_reach_a_worker() {
    let mut shared = tempfile::tempfile().unwrap();
    shared.write_all(b"seen by all").unwrap();
    shared.rewind().unwrap();
    // One that our own parent could have left open for anybody.
    let leaked = File::open("/dev/zero").unwrap();
    fcntl_setfd(&leaked, FdFlags::empty()).unwrap();
    let mut stage = Stage::new(3, &["show-descriptors"]);
    stage.launch.inherit.push(("TEST_SHARED_FD", shared.into()));
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    for rank in 0..3 {
        let lines = recorder.lines_of(rank, Stream::Stdout);
        let targets: Vec<_> = lines
            .iter()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        let pipes = targets
            .iter()
            .filter(|target| target.starts_with("pipe:"))
            .count();
        assert_eq!((targets.len(), pipes), (5, 3), "rank {rank}: {lines:#?}");
        assert!(
            targets.contains(&"/dev/null") && !targets.contains(&"/dev/zero"),
            "{lines:#?}"
        );
        assert_eq!(recorder.lines_of(rank, Stream::Stderr), ["seen by all"]);
    }
    assert!(
        !rustix::io::fcntl_getfd(&leaked)
            .unwrap()
            .contains(FdFlags::CLOEXEC),
        "only children are changed"
    );
}

/// The part of a launcher that is killed.
pub(crate) fn launcher(part: &str, directory: &str) -> ExitCode {
    let launch = launch_in(Path::new(directory), 3, &["by-rank", part, "hang", "hang"]);
    let mut recorder = Recorder::default();
    let outcome = run(&launch, &mut recorder, &StopRequests::new().unwrap()).unwrap();
    for remark in recorder.remarks {
        println!("{remark}");
    }
    ExitCode::from(outcome.exit_code())
}

fn a_killed_launcher_leaves_no_worker() {
    let directory = tempfile::tempdir().unwrap();
    let mut launcher = Command::new(std::env::current_exe().unwrap())
        .args(["--as-launcher", "hang"])
        .arg(directory.path())
        .spawn()
        .unwrap();
    let pids: Vec<_> = (0..3)
        .map(|rank| read_pid(&directory.path().join(format!("ready-{rank}"))))
        .collect();
    assert!(pids.iter().all(|&pid| is_running(pid)));
    let start = Instant::now();
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("the workers are gone", || {
        !pids.iter().any(|&pid| is_running(pid))
    });
    assert!(start.elapsed() < Duration::from_secs(6));
}

struct Panicking;

impl Observer for Panicking {
    fn message(&mut self, _: usize, _: WorkerMessage) {}

    fn line(&mut self, _: usize, _: Stream, line: &str) {
        // A panic that prints nothing, where a reader would take it for a failure.
        std::panic::resume_unwind(Box::new(line.to_owned()));
    }

    fn lines_skipped(&mut self, _: usize, _: u64) {}

    fn log_failed(&mut self, _: usize, _: &Path, _: &io::Error) {}
}

fn a_panicking_observer_leaves_no_worker() {
    let stage = Stage::new(2, &["by-rank", "print:on purpose+hang", "hang"]);
    let stop = StopRequests::new().unwrap();
    let start = Instant::now();
    let launch = AssertUnwindSafe(|| run(&stage.launch, &mut Panicking, &stop));
    assert!(leaving_nothing(|| catch_unwind(launch).is_err()));
    assert!(start.elapsed() < Duration::from_secs(6));
}

fn another_thread_is_refused() {
    let stage = Stage::new(1, &["exit", "0"]);
    let stop = StopRequests::new().unwrap();
    let launch = &stage.launch;
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| run(launch, &mut Recorder::default(), &stop).map(drop))
            .join()
            .unwrap()
    });
    assert!(
        matches!(result, Err(LaunchError::NotMainThread)),
        "{result:?}"
    );
}

fn a_child_that_keeps_the_pipes_holds_nobody_up() {
    let stage = Stage::new(1, &["leave-child", "session"]);
    let start = Instant::now();
    let (outcome, _) = stage.run();
    let took = start.elapsed();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let log = String::from_utf8(stage.log(0)).unwrap();
    // The child may be in the middle of a line of its own.
    assert!(
        log.lines().any(|line| line.ends_with("last words")),
        "{} bytes",
        log.len()
    );
}

fn what_a_worker_leaves_in_its_group_is_killed() {
    let stage = Stage::new(1, &["leave-child", "group"]);
    let (outcome, _) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    let pid = read_pid(&stage.directory.path().join("linger"));
    wait_until("the child is gone", || !is_running(pid));
}

fn a_finished_run_waits_for_nothing() {
    let stage = Stage::script(1, "true", "");
    let took = (0..20).map(|_| {
        let start = Instant::now();
        let (outcome, _) = stage.run();
        assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
        start.elapsed()
    });
    // A few ms where nothing else runs; any wait of the launcher's own would show in all twenty.
    let best = took.min().unwrap();
    assert!(best < Duration::from_millis(250), "{best:?}");
    assert_eq!(stage.log(0), b"");
}

fn sixteen_workers_run_side_by_side() {
    let (outcome, recorder) = Stage::script(16, "sh", "echo $RANK").run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    for rank in 0..16 {
        assert_eq!(recorder.lines_of(rank, Stream::Stdout), [rank.to_string()]);
    }
    assert_eq!(failed(Stage::script(16, "false", "").run().0).exit_code, 1);
}
