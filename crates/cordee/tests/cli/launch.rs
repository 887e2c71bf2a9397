//! `cordee launch`: programs that know nothing of cordee, started as torchrun starts them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::fixture::{Finished, Fixture};

/// Without what the machine of the test may have set.
fn launch(fixture: &Fixture, arguments: &[&str], set: &[(&str, &str)]) -> Finished {
    let mut command = fixture.command(&[&["launch"], arguments].concat());
    for name in [
        "OMP_NUM_THREADS",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "PYTHON_EXEC",
    ] {
        command.env_remove(name);
    }
    command.envs(set.iter().copied());
    Finished::from(command.output().unwrap())
}

/// What a process wrote by `env`, to a file named after its rank.
fn environment(fixture: &Fixture, rank: usize) -> BTreeMap<String, String> {
    let text = fs::read_to_string(fixture.path(&format!("env-{rank}"))).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

const WRITE_ENVIRONMENT: [&str; 4] = ["--", "sh", "-c", "env > env-$RANK"];

#[test]
fn processes_get_what_torchrun_gives_them() {
    let fixture = Fixture::new();
    let options = [
        "--nproc-per-node",
        "2",
        "--max-restarts=3",
        "--rdzv-id",
        "job-7",
        "--role",
        "trainer",
    ];
    launch(&fixture, &[&options[..], &WRITE_ENVIRONMENT].concat(), &[]).expect(0);
    for rank in 0..2 {
        let found = environment(&fixture, rank);
        let number = rank.to_string();
        let expected = [
            ("RANK", number.as_str()),
            ("LOCAL_RANK", &number),
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("GROUP_RANK", "0"),
            ("GROUP_WORLD_SIZE", "1"),
            ("ROLE_RANK", &number),
            ("ROLE_WORLD_SIZE", "2"),
            ("ROLE_NAME", "trainer"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("TORCHELASTIC_RESTART_COUNT", "0"),
            ("TORCHELASTIC_MAX_RESTARTS", "3"),
            ("TORCHELASTIC_RUN_ID", "job-7"),
            ("TORCHELASTIC_USE_AGENT_STORE", "False"),
            ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
            ("OMP_NUM_THREADS", "1"),
        ];
        for (name, value) in expected {
            assert_eq!(found.get(name).map(String::as_str), Some(value), "{name}");
        }
    }
    let ports: BTreeSet<_> = (0..2)
        .map(|rank| environment(&fixture, rank)["MASTER_PORT"].clone())
        .collect();
    assert_eq!(ports.len(), 1, "they meet at one port: {ports:?}");
    let port: u16 = ports.first().unwrap().parse().unwrap();
    assert!(
        TcpListener::bind(("127.0.0.1", port)).is_ok(),
        "{port} is free"
    );
}

#[test]
fn one_process_keeps_its_threads_and_what_is_set_stays() {
    let fixture = Fixture::new();
    launch(
        &fixture,
        &WRITE_ENVIRONMENT,
        &[("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")],
    )
    .expect(0);
    let found = environment(&fixture, 0);
    assert_eq!(found.get("OMP_NUM_THREADS"), None);
    assert_eq!(found["TORCH_NCCL_ASYNC_ERROR_HANDLING"], "0");
}

#[test]
fn options_come_from_the_environment_and_by_underscores_too() {
    let fixture = Fixture::new();
    let set = [
        ("PET_NPROC_PER_NODE", "2"),
        ("PET_MASTER_PORT", "40123"),
        ("PET_MASTER_ADDR", "localhost"),
    ];
    launch(&fixture, &WRITE_ENVIRONMENT, &set).expect(0);
    let found = environment(&fixture, 1);
    let place = (found["MASTER_ADDR"].as_str(), found["MASTER_PORT"].as_str());
    assert_eq!(place, ("localhost", "40123"));
    let typed = [
        "--nproc_per_node=3",
        "--rdzv_endpoint=127.0.0.1:40124",
        "--standalone",
        "--tee",
        "3",
    ];
    launch(&fixture, &[&typed[..], &WRITE_ENVIRONMENT].concat(), &set)
        .expect(0)
        .says(&["--tee changes nothing"]);
    let found = environment(&fixture, 2);
    assert_eq!(found["WORLD_SIZE"], "3");
    assert_eq!(found["MASTER_PORT"], "40124");
}

#[test]
fn every_launch_has_a_port_of_its_own() {
    let fixture = Fixture::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let held = held.local_addr().unwrap().port().to_string();
    let mut ports = BTreeSet::from([held.clone()]);
    for _ in 0..4 {
        launch(
            &fixture,
            &["--", "sh", "-c", "echo $MASTER_PORT"],
            &[("PET_RDZV_ENDPOINT", "localhost:0")],
        )
        .expect(0)
        .stdout
        .lines()
        .for_each(|port| assert!(ports.insert(port.to_owned()), "{port} was given twice"));
    }
    assert_eq!(ports.len(), 5);
    launch(&fixture, &["--master-port", &held, "true"], &[])
        .expect(0)
        .says(&["listens at port"]);
}

#[test]
fn rank_0_has_standard_output_and_every_rank_has_a_log() {
    let fixture = Fixture::new();
    let script = "echo out $RANK; echo \"  beside\" $RANK >&2; echo ValueError: wrong $RANK >&2";
    let ended = launch(
        &fixture,
        &[
            "--nproc-per-node",
            "2",
            "--log-dir",
            "logs",
            "sh",
            "-c",
            script,
        ],
        &[],
    )
    .expect(0);
    assert_eq!(ended.stdout, "out 0\n");
    assert!(ended.stderr.contains("  beside 0\n"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("beside 1"), "{}", ended.stderr);
    let ended = ended.says(&[
        "[rank 1] ValueError: wrong 1",
        "2 processes of `sh -c",
        "logs in logs",
    ]);
    assert!(!ended.stderr.contains("out 0"), "{}", ended.stderr);
    for rank in 0..2 {
        let log = fs::read_to_string(fixture.path(&format!("logs/rank-00{rank}.log"))).unwrap();
        assert!(log.contains(&format!("out {rank}\n")), "{log}");
        assert!(log.contains(&format!("beside {rank}\n")), "{log}");
    }
}

#[test]
fn the_rank_that_fails_is_named_with_what_it_said() {
    let fixture = Fixture::new();
    let script = "if [ $RANK = 1 ]; then echo 'no such layer: 7' >&2; exit 4; fi; sleep 60";
    let started = Instant::now();
    let ended = launch(&fixture, &["--nproc-per-node=2", "sh", "-c", script], &[])
        .expect(4)
        .says(&[
            "rank 1 (",
            "exited with code 4",
            "no such layer: 7",
            "cordee-logs/sh-",
            "rank 0 was stopped by the launcher",
        ]);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_failure_is_tried_again_as_often_as_allowed() {
    let fixture = Fixture::new();
    // Fails unless it was started before.
    let script = "echo attempt $TORCHELASTIC_RESTART_COUNT; [ -e second ] && exit 0; [ $RANK = 1 ] && touch second && exit 1; sleep 60";
    let arguments = [
        "--nproc-per-node=2",
        "--max-restarts=1",
        "--log-dir=logs",
        "sh",
        "-c",
        script,
    ];
    let ended = launch(&fixture, &arguments, &[]).expect(0).says(&[
        "warning: rank 1 (",
        "attempt 2 of 2",
        "exited with code 1",
    ]);
    assert_eq!(ended.stdout, "attempt 0\nattempt 1\n");
    let log = fs::read_to_string(fixture.path("logs/rank-000.log")).unwrap();
    assert!(
        log.contains("attempt 0\n==== attempt 2 ====\nattempt 1\n"),
        "{log}"
    );
    let starts = "echo x >> starts; exit 1";
    launch(&fixture, &["--max-restarts=2", "sh", "-c", starts], &[]).expect(1);
    let count = || {
        fs::read_to_string(fixture.path("starts"))
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(count(), 3);
    for code in ["2", "3", "93"] {
        fs::remove_file(fixture.path("starts")).unwrap();
        let starts = format!("echo x >> starts; exit {code}");
        launch(&fixture, &["--max-restarts=2", "sh", "-c", &starts], &[])
            .expect(code.parse().unwrap())
            .says(&["not started again"]);
        assert_eq!(count(), 1, "{code}");
    }
}

#[test]
fn scripts_of_python_and_modules() {
    let fixture = Fixture::new();
    fixture.write("fake-python", "#!/bin/sh\necho \"$@\"\n");
    fs::set_permissions(
        fixture.path("fake-python"),
        PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    fixture.write("train.py", "print('never run by a shell')\n");
    let python = [("PYTHON_EXEC", "./fake-python")];
    let script = launch(&fixture, &["train.py", "--lr", "1"], &python).expect(0);
    assert_eq!(script.stdout, "-u train.py --lr 1\n");
    let module = launch(&fixture, &["-m", "some.module", "x"], &python).expect(0);
    assert_eq!(module.stdout, "-u -m some.module x\n");
}

#[test]
fn what_cannot_be_started_is_refused() {
    let fixture = Fixture::new();
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &["--", "no-such-program"],
            &["no program `no-such-program` in PATH"],
        ),
        (&["absent.py"], &["there is no file absent.py"]),
        (
            &["--nnodes", "2", "true"],
            &["--nnodes is 2, and nothing says which", "--node-rank"],
        ),
        (
            &["--node_rank=1", "true"],
            &["--node-rank is 1", "--nnodes is 1 where"],
        ),
        (&["--no-such-option", "true"], &["--no-such-option"]),
        (&[], &["<CMD>"]),
    ];
    for (arguments, says) in cases {
        launch(&fixture, arguments, &[]).expect(2).says(says);
    }
    assert!(!fixture.path("cordee-logs").exists(), "nothing was started");
}

#[test]
fn no_process_is_left_when_the_launcher_is_killed() {
    let fixture = Fixture::new();
    let script = "echo $$ > pid-$RANK.new; mv pid-$RANK.new pid-$RANK; sleep 600";
    let mut child = fixture
        .command(&["launch", "--nproc-per-node", "2", "sh", "-c", script])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = |rank: usize| {
        let text = fs::read_to_string(fixture.path(&format!("pid-{rank}"))).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    };
    let started = Instant::now();
    let wait = |what: &dyn Fn() -> bool| {
        while !what() {
            assert!(started.elapsed() < Duration::from_secs(30), "it never came");
            thread::sleep(Duration::from_millis(10));
        }
    };
    wait(&|| pid(0).and(pid(1)).is_some());
    let pids = [pid(0).unwrap(), pid(1).unwrap()];
    kill_process(
        Pid::from_raw(child.id().cast_signed()).unwrap(),
        Signal::KILL,
    )
    .unwrap();
    child.wait().unwrap();
    let is_there = |pid: Pid| {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        test_kill_process(pid).is_ok() && !stat.contains(") Z")
    };
    wait(&|| !pids.iter().any(|pid| is_there(*pid)));
}

#[test]
fn a_request_to_stop_reaches_the_processes() {
    let fixture = Fixture::new();
    let script = "trap 'echo stopping; exit 75' TERM; touch ready; while true; do sleep 0.05; done";
    let child = fixture
        .command(&["launch", "--max-restarts=5", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !fixture.path("ready").exists() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "it never began"
        );
        thread::sleep(Duration::from_millis(10));
    }
    kill_process(
        Pid::from_raw(child.id().cast_signed()).unwrap(),
        Signal::TERM,
    )
    .unwrap();
    let ended = Finished::from(child.wait_with_output().unwrap()).expect(75);
    assert_eq!(ended.stdout, "stopping\n");
}

/// Two machines that were told one place to meet at: launchers meet there, and the first process opens its
/// store elsewhere. The failure of a process ends those of all machines, and all start again.
#[test]
fn machines_that_meet_at_an_endpoint_run_one_job() {
    let fixture = Fixture::new();
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = endpoint.local_addr().unwrap().port().to_string();
    drop(endpoint);
    let script = "env > env-$RANK; [ $RANK$TORCHELASTIC_RESTART_COUNT != 30 ] || exit 7; \
                  [ $TORCHELASTIC_RESTART_COUNT = 1 ] || sleep 60";
    let machines = [0, 1].map(|machine: usize| {
        let mut command = fixture.command(&["launch", "--nnodes=2", "--nproc-per-node=2"]);
        command
            .arg(format!("--node-rank={machine}"))
            .arg(format!("--rdzv-endpoint=127.0.0.1:{port}"))
            .args(["--max-restarts=1", "--", "sh", "-c", script])
            .env("CORDEE_JOB_TOKEN", "what only these two know")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for machine in machines {
        Finished::from(machine.wait_with_output().unwrap()).expect(0);
    }
    let found = [0, 1, 2, 3].map(|rank| environment(&fixture, rank));
    for (rank, found) in found.iter().enumerate() {
        let (machine, local) = ((rank / 2).to_string(), (rank % 2).to_string());
        let expected = [
            ("WORLD_SIZE", "4"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("LOCAL_RANK", &local),
            ("GROUP_RANK", &machine),
            ("GROUP_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("TORCHELASTIC_RESTART_COUNT", "1"),
        ];
        for (name, value) in expected {
            assert_eq!(found[name], value, "{name} of rank {rank}");
        }
    }
    let stores: BTreeSet<_> = found.iter().map(|it| &it["MASTER_PORT"]).collect();
    assert_eq!(stores.len(), 1, "{stores:?}");
    assert!(!stores.contains(&port));
}
