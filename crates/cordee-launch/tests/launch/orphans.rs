//! What workers started and left is gone after the run; what others started is not touched.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cordee_launch::{Outcome, StopRequests, run};
use rustix::process::child_subreaper;

use crate::Test;
use crate::stage::{Recorder, Stage, failed, is_running, read_pid, wait_until};

pub(crate) const TESTS: &[Test] = &[
    (
        "orphans::a_session_of_its_own_saves_nobody",
        a_session_of_its_own_saves_nobody,
    ),
    (
        "orphans::a_second_fork_outside_of_all_groups_saves_nobody",
        a_second_fork_outside_of_all_groups_saves_nobody,
    ),
    (
        "orphans::those_of_a_killed_worker_are_gone",
        those_of_a_killed_worker_are_gone,
    ),
    (
        "orphans::an_orphan_that_ends_is_reaped_meanwhile",
        an_orphan_that_ends_is_reaped_meanwhile,
    ),
    (
        "orphans::children_of_the_caller_are_left_alone",
        children_of_the_caller_are_left_alone,
    ),
    (
        "orphans::control_groups_end_what_lives_on_at_once",
        control_groups_end_what_lives_on_at_once,
    ),
    (
        "orphans::without_control_groups_there_is_a_remark",
        without_control_groups_there_is_a_remark,
    ),
    (
        "orphans::a_living_launcher_is_left_alone",
        a_living_launcher_is_left_alone,
    ),
    (
        "orphans::what_a_killed_launcher_left_is_cleared",
        what_a_killed_launcher_left_is_cleared,
    ),
];

/// Our own directory in cgroup v2, if groups may be made in it; else says so, or fails where a skip
/// counts as a failure.
pub(crate) fn control_groups() -> Option<PathBuf> {
    let directory = own_directory();
    let probe = directory
        .as_ref()
        .map(|directory| directory.join(format!("probe-{}", std::process::id())));
    let writable = probe.is_some_and(|probe| {
        std::fs::create_dir(&probe).is_ok_and(|()| {
            let kills = probe.join("cgroup.kill").exists();
            std::fs::remove_dir(&probe).unwrap();
            kills
        })
    });
    if !writable {
        skip("control groups of cgroup v2 cannot be made here");
    }
    directory.filter(|_| writable)
}

pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "skipped in CI: {why}"
    );
    println!("SKIPPED: {why}");
}

/// A control group of this test's own, so that tests that run at the same time do not clear each other's
/// leftovers.
pub(crate) struct Apart {
    parent: PathBuf,
    directory: PathBuf,
}

impl Apart {
    pub(crate) fn enter() -> Option<Self> {
        let parent = own_directory()?;
        let directory = parent.join(format!("test-{}", std::process::id()));
        std::fs::create_dir(&directory).ok()?;
        let apart = Self { parent, directory };
        let enter = std::fs::write(apart.directory.join("cgroup.procs"), "0");
        enter.is_ok().then_some(apart)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = std::fs::write(self.parent.join("cgroup.procs"), "0");
        // Launchers that were killed leave groups, empty ones.
        remove(&self.directory);
    }
}

fn remove(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(directory);
}

fn own_directory() -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(PathBuf::from(mount.split(' ').nth(4)?).join(group))
}

/// Groups of launchers of ours that still exist.
fn groups_left(directory: &PathBuf, launcher: u32) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    let part = format!("-{launcher}-");
    let named = entries.filter(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name.starts_with("cordee-") && name.contains(&part)
    });
    named.count()
}

fn orphan(stage: &Stage) -> u32 {
    read_pid(&stage.directory.path().join("linger"))
}

fn a_session_of_its_own_saves_nobody() {
    let stage = Stage::new(1, &["leave-child", "session"]);
    let (outcome, _) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert!(!is_running(orphan(&stage)));
}

fn a_second_fork_outside_of_all_groups_saves_nobody() {
    let stage = Stage::new(1, &["leave-child", "outside"]);
    let (outcome, _) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert!(!is_running(orphan(&stage)));
    assert_eq!(child_subreaper().unwrap(), None, "nothing is adopted later");
}

fn those_of_a_killed_worker_are_gone() {
    for place in ["session", "outside"] {
        let part = format!("leave:{place}+exit:1");
        let stage = Stage::new(2, &["by-rank", &part, "hang"]);
        let report = failed(stage.run().0);
        assert_eq!(report.rank, 0);
        assert!(!is_running(orphan(&stage)), "{place}");
        let part = format!("leave:{place}+hang");
        let stage = Stage::new(2, &["by-rank", &part, "await:0+sleep:100+exit:1"]);
        let report = failed(stage.run().0);
        assert_eq!(report.rank, 1);
        assert!(!is_running(orphan(&stage)), "{place}");
    }
}

fn an_orphan_that_ends_is_reaped_meanwhile() {
    // The shell forks in a session of its own, and both end; the rest would stay a zombie for days.
    let script = "setsid sh -c 'sleep 0.2 & echo $! > $TEST_DIRECTORY/short'; \
        read pid < $TEST_DIRECTORY/short; \
        for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do \
        test -e /proc/$pid || exit 0; sleep 0.1; done; exit 1";
    let (outcome, _) = Stage::script(1, "sh", script).run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
}

fn children_of_the_caller_are_left_alone() {
    let plain = || Command::new("sleep").arg("60").spawn().unwrap();
    let own_group = || {
        Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap()
    };
    let own_session = || {
        Command::new("setsid")
            .args(["sleep", "60"])
            .spawn()
            .unwrap()
    };
    let ended = || Command::new("true").spawn().unwrap();
    let mut children: Vec<Child> = vec![plain(), own_group(), own_session(), ended()];
    let stage = Stage::new(2, &["by-rank", "leave:outside+sleep:1200+exit:1", "hang"]);
    let stop = StopRequests::new().unwrap();
    let outcome = run(&stage.launch, &mut Recorder::default(), &stop).unwrap();
    assert_eq!(failed(outcome).rank, 0);
    assert!(!is_running(orphan(&stage)));
    assert!(children.pop().unwrap().wait().unwrap().success());
    for mut child in children {
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn control_groups_end_what_lives_on_at_once() {
    let Some(directory) = control_groups() else {
        return;
    };
    let own = std::process::id();
    // Rank 1 ends in order only when it sees that what rank 0 left is gone.
    let stage = Stage::new(2, &["by-rank", "leave:session", "await-end:linger"]);
    let (outcome, recorder) = stage.run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert_eq!(recorder.remarks, [""; 0]);
    assert_eq!(groups_left(&directory, own), 0);
}

fn without_control_groups_there_is_a_remark() {
    // Who is not root has none to lose, and every other test runs without them.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(place.path(), everybody).unwrap();
    let program = place.path().join("launch");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new(&program)
        .args(["--as-launcher", "leave:session+exit:3"])
        .arg(place.path())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let remark = String::from_utf8(output.stdout).unwrap();
    assert!(
        remark.starts_with("workers get no control groups of their own: "),
        "{remark}"
    );
    assert_eq!(remark.lines().count(), 1, "{remark}");
    assert!(!is_running(read_pid(&place.path().join("linger"))));
}

fn a_living_launcher_is_left_alone() {
    let place = tempfile::tempdir().unwrap();
    let mut launcher = Command::new(std::env::current_exe().unwrap())
        .args(["--as-launcher", "hang"])
        .arg(place.path())
        .spawn()
        .unwrap();
    let worker = read_pid(&place.path().join("ready-0"));
    let stop = StopRequests::new().unwrap();
    let stage = Stage::new(1, &["exit", "0"]);
    let mut recorder = Recorder::default();
    let outcome = run(&stage.launch, &mut recorder, &stop).unwrap();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert!(is_running(worker) && is_running(launcher.id()));
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("the worker is gone", || !is_running(worker));
}

fn what_a_killed_launcher_left_is_cleared() {
    let Some(directory) = control_groups() else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let mut launcher = Command::new(std::env::current_exe().unwrap())
        .args(["--as-launcher", "leave:session+hang"])
        .arg(place.path())
        .spawn()
        .unwrap();
    let workers: Vec<_> = (0..3)
        .map(|rank| read_pid(&place.path().join(format!("ready-{rank}"))))
        .collect();
    let orphan = read_pid(&place.path().join("linger"));
    let start = Instant::now();
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("the workers are gone", || {
        !workers.iter().any(|&pid| is_running(pid))
    });
    assert!(is_running(orphan), "nobody is there to kill it");
    assert_eq!(groups_left(&directory, launcher.id()), 1);
    let (outcome, recorder) = Stage::new(1, &["exit", "0"]).run();
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert_eq!(
        recorder.remarks,
        ["killed 1 process that a launcher had left behind when killed"]
    );
    wait_until("the orphan is gone", || !is_running(orphan));
    assert_eq!(groups_left(&directory, launcher.id()), 0);
    assert!(start.elapsed() < Duration::from_secs(6));
}
