//! What a user reads, of real processes that fail in every way that we know.
//!
//! The snapshots in `texts` hold what is compared.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use cordee_launch::{FailureReport, LaunchError, Outcome, StopRequests, run};
use insta::{Settings, assert_snapshot};

use crate::Test;
use crate::orphans::skip;
use crate::stage::{Recorder, Stage, failed, launch_in};

pub(crate) const TESTS: &[Test] = &[
    ("texts::programs_that_say_why", programs_that_say_why),
    ("texts::programs_that_do_not", programs_that_do_not),
    ("texts::messages_to_the_launcher", messages_to_the_launcher),
    ("texts::signals", signals),
    ("texts::limits", limits),
    ("texts::memory", memory),
    (
        "texts::out_of_memory_by_the_kernel",
        out_of_memory_by_the_kernel,
    ),
    (
        "texts::ranks_that_depend_on_others",
        ranks_that_depend_on_others,
    ),
    ("texts::what_lived_on", what_lived_on),
    (
        "texts::programs_that_cannot_start",
        programs_that_cannot_start,
    ),
];

/// Compares a text with the one that is kept, and sees that it fits a screen.
fn check(name: &str, text: &str) {
    assert!(text.lines().count() <= 24, "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    let mut settings = Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("texts");
    settings.bind(|| assert_snapshot!(name, text));
}

/// The text of a report, with the same names and times in every run.
fn steady(mut report: FailureReport, directory: &Path) -> String {
    "node-a".clone_into(&mut report.host);
    report.pid = 4242;
    report.ran_for = Duration::from_millis(190_400);
    let short =
        |log: &mut PathBuf| *log = Path::new("runs/x").join(log.strip_prefix(directory).unwrap());
    short(&mut report.log);
    if let Some(silent) = &mut report.silent {
        silent.pid = 4243;
        short(&mut silent.log);
    }
    let here = directory.display().to_string();
    for line in &mut report.last_lines {
        *line = line.replace(&here, "runs/x");
    }
    report.render()
}

fn text_of(stage: &mut Stage) -> String {
    let quiet = ("RUST_BACKTRACE".into(), "0".into());
    stage.launch.environment.push(quiet);
    steady(failed(stage.run().0), stage.directory.path())
}

fn check_parts(name: &str, parts: &[&str]) {
    let words: Vec<_> = ["by-rank"].iter().chain(parts).copied().collect();
    check(name, &text_of(&mut Stage::new(parts.len(), &words)));
}

fn check_script(name: &str, script: &str) {
    check(name, &text_of(&mut Stage::script(1, "bash", script)));
}

fn programs_that_say_why() {
    check_parts(
        "panic",
        &["hang", "steps:12+panic:the shard is empty", "hang", "hang"],
    );
    check_script(
        "message_on_stderr",
        "echo loading; echo 'error: tokens.bin has 3 tokens, 4096 are needed' >&2; exit 1",
    );
    let traceback = "cat >&2 <<'END'\nTraceback (most recent call last):\n  File \"/job/train.py\", line 9, in <module>\n    main()\n  File \"/job/train.py\", line 5, in main\n    import flash_attn\nModuleNotFoundError: No module named 'flash_attn'\nEND\nexit 1";
    check_script("python_traceback", traceback);
    check_script("missing_file", "LC_ALL=C cat /no/such/tokens.bin; exit 1");
    check_script(
        "command_not_found",
        "no-such-program 2> /dev/null; code=$?; echo 'train.sh: no-such-program: command not found' >&2; exit $code",
    );
    let noise = "for i in $(seq 200); do printf 'step %d: %0200d\\n' $i 0; done; exit 1";
    check_script("long_log", noise);
}

fn programs_that_do_not() {
    check_parts("silent", &["exit:1", "hang"]);
    check_parts("panic_code_alone", &["print:step 1+exit:101"]);
    check_parts("unknown_code", &["print:step 1+exit:57"]);
    check_script(
        "closed_message_pipe",
        "eval \"exec $CORDEE_MESSAGE_FD>&-\"; echo step 1; exit 1",
    );
}

fn messages_to_the_launcher() {
    let say = |code: u8, message: &str, hint: &str| {
        format!(
            "say:{{\"kind\":\"failed\",\"rank\":1,\"code\":{code},\"message\":\"{message}\",\"hint\":{hint}}}+exit:{code}"
        )
    };
    let cases = [
        (
            "usage",
            2,
            "`train.steps` is 0: a run needs at least 1",
            "\"set `train.steps`\"",
        ),
        (
            "environment",
            3,
            "device 3 is not there: this machine has 2 GPUs",
            "null",
        ),
        (
            "diverged",
            4,
            "the loss of step 812 is NaN\\nthe gradient's norm of step 811 was 1.2e38",
            "null",
        ),
        (
            "bad_node",
            94,
            "GPU 5 returned other bits than its peers for the same product",
            "null",
        ),
    ];
    for (name, code, message, hint) in cases {
        check_parts(
            name,
            &["hang", &format!("steps:7+{}", say(code, message, hint))],
        );
    }
}

fn signals() {
    let own = [
        ("sigsegv", 11),
        ("sigbus", 7),
        ("sigill", 4),
        ("sigfpe", 8),
        ("sigabrt", 6),
        ("sigsys", 31),
    ];
    for (name, number) in own {
        check_parts(
            name,
            &[
                &format!("no-core+steps:3+print:step 3+kill-self:{number}"),
                "hang",
            ],
        );
    }
    // Rust's own programs ignore SIGPIPE, and this one handles SIGTERM: others do not.
    for (name, number) in [
        ("sigpipe", 13),
        ("sigterm", 15),
        ("sigkill", 9),
        ("sigint", 2),
    ] {
        check_script(name, &format!("echo step 3; kill -{number} $$; sleep 5"));
    }
    check_script(
        "signal_of_a_child",
        "exec 2>/dev/null; bash -c 'ulimit -c 0; kill -11 $$'; exit 139",
    );
}

fn limits() {
    check_script("sigxcpu", "ulimit -c 0; ulimit -St 1; while :; do :; done");
    check_script(
        "sigxfsz",
        "ulimit -c 0; ulimit -f 1; exec head -c 100000 /dev/zero > \"$TEST_DIRECTORY/big\"",
    );
}

fn memory() {
    check_parts("allocation", &["no-core+allocate"]);
}

/// The part of a launcher that runs with its workers in a control group with little memory.
pub(crate) fn launcher(directory: &str, group: &str) -> ExitCode {
    std::fs::write(Path::new(group).join("cgroup.procs"), "0").unwrap();
    let launch = launch_in(
        Path::new(directory),
        2,
        &["by-rank", "hang", "print:step 3+devour"],
    );
    let outcome = run(
        &launch,
        &mut Recorder::default(),
        &StopRequests::new().unwrap(),
    )
    .unwrap();
    let Outcome::Failed(report) = outcome else {
        return ExitCode::FAILURE;
    };
    println!("{}", steady(*report, Path::new(directory)));
    ExitCode::SUCCESS
}

/// A group with a limit of memory; gone with the value.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new() -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let find = |key: &str| {
            let mut lines = groups
                .lines()
                .filter_map(|line| line.split_once(':')?.1.split_once(':'));
            lines
                .find(|(controllers, _)| controllers.split(',').any(|name| name == key))
                .map(|(_, path)| path.to_owned())
        };
        let candidates = [
            (
                find("memory"),
                "/sys/fs/cgroup/memory",
                ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
            ),
            (
                find(""),
                "/sys/fs/cgroup",
                ["memory.max", "memory.swap.max"],
            ),
        ];
        for (path, root, limits) in candidates {
            let Some(path) = path else { continue };
            let name = format!("cordee-test-{}", std::process::id());
            let group = Self(
                Path::new(root)
                    .join(path.trim_start_matches('/'))
                    .join(name),
            );
            if std::fs::create_dir(&group.0).is_err() {
                continue;
            }
            if std::fs::write(group.0.join(limits[0]), "100000000").is_ok() {
                // Swap is none of the memory that is limited; where there is no such limit there is no swap.
                let swap = if limits[1] == "memory.swap.max" {
                    "0"
                } else {
                    "100000000"
                };
                let _ = std::fs::write(group.0.join(limits[1]), swap);
                return Some(group);
            }
        }
        None
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let removed = || std::fs::remove_dir(&self.0).is_ok() || !self.0.exists();
        for _ in 0..500 {
            if removed() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn out_of_memory_by_the_kernel() {
    let Some(group) = MemoryGroup::new() else {
        return skip("control groups with a limit of memory cannot be made here");
    };
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("--as-limited-launcher")
        .arg(directory.path())
        .arg(&group.0)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    check("out_of_memory", text.trim_end());
}

fn ranks_that_depend_on_others() {
    check_parts(
        "blames_a_stopped_rank",
        &[
            "await:2+sleep:100+blame:2+exit:1",
            "hang",
            "kill-self:19+hang",
        ],
    );
    check_parts("blames_a_running_rank", &["blame:1+exit:95", "hang"]);
    check_parts(
        "blames_a_rank_that_left",
        &[
            "after:1+blame:1+exit:1",
            "exit:0",
            "after:0+blame:0+exit:1",
            "hang",
        ],
    );
    check_parts(
        "blames_a_rank_that_fell",
        &[
            "blame:1+exit:1",
            "sleep:100+no-core+kill-self:11",
            "blame:0+exit:1",
        ],
    );
}

fn what_lived_on() {
    check_script(
        "left_a_session",
        "setsid sleep 60 & sleep 0.3; echo 'error: no more data' >&2; exit 1",
    );
}

fn programs_that_cannot_start() {
    let text = |error: &LaunchError| {
        let source = std::error::Error::source(error).unwrap();
        format!("{error}: {source}\nhint: {}", error.hint().unwrap())
    };
    let mut stage = Stage::new(2, &[]);
    stage.launch.program = "/no/such/worker".into();
    check("program_not_found", &text(&stage.refused()));
    let program = stage.directory.path().join("worker");
    stage.launch.program.clone_from(&program);
    let write = |bytes: &str, mode: u32| {
        std::fs::write(&program, bytes).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(mode)).unwrap();
    };
    let here = stage.directory.path().display().to_string();
    write("#!/bin/sh\n", 0o644);
    let refused = text(&stage.refused()).replace(&here, "runs/x");
    check("program_not_executable", &refused);
    write("#!/no/such/shell\n", 0o755);
    let refused = text(&stage.refused()).replace(&here, "runs/x");
    check("program_without_interpreter", &refused);
    write("\u{7f}ELF and no more", 0o755);
    stage.launch.ranks = 1;
    let text = text_of(&mut stage);
    // What is no program goes to the shell, and each has its own words for it.
    if std::fs::read_link("/bin/sh").is_ok_and(|shell| shell.ends_with("dash")) {
        check("program_of_another_kind", &text);
    }
}
