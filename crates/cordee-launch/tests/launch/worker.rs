//! The part of the worker: what to do is in the arguments, by rank where it matters.

use std::alloc::{Layout, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use cordee_memory::{SharedMemory, SharedWords};
use cordee_protocol::{
    Failure, Phase, StatusPage, StepProgress, WorkerEnvironment, WorkerMessage, names,
};
use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, setrlimit, setsid};

use crate::stage::{is_running, read_pid, wait_until};

/// Plays one of the parts; the exit code comes back.
pub(crate) fn main(words: &[String]) -> u8 {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["show-environment"] => show_environment(),
        ["show-descriptors"] => show_descriptors(),
        ["exit", ref codes @ ..] => return codes[rank()].parse().unwrap(),
        ["by-rank", ref parts @ ..] => return act(parts[rank()]),
        ["flood", lines] => flood(lines.parse().unwrap()),
        ["steps", count] => steps(count.parse().unwrap()),
        ["leave-child", place] => leave_child(place),
        ["linger", place] => linger(place),
        _ => panic!("no such part: {words:?}"),
    }
    0
}

/// `+`-separated acts, played in order.
fn act(part: &str) -> u8 {
    let terminated = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(15, Arc::clone(&terminated)).unwrap();
    write_pid(&format!("ready-{}", rank()));
    for step in part.split('+') {
        let (verb, value) = step.split_once(':').unwrap_or((step, ""));
        match verb {
            "sleep" => sleep(Duration::from_millis(value.parse().unwrap())),
            "print" => println!("{value}"),
            "print-part" => {
                print!("{value}");
                stdout().flush().unwrap();
            }
            "steps" => steps(value.parse().unwrap()),
            "await" => {
                read_pid(&directory().join(format!("ready-{value}")));
            }
            "panic" => panic_with(value),
            "no-core" => setrlimit(
                Resource::Core,
                Rlimit {
                    current: Some(0),
                    maximum: Some(0),
                },
            )
            .unwrap(),
            "allocate" => handle_alloc_error(Layout::from_size_align(5 << 30, 64).unwrap()),
            "devour" => devour(),
            "leave" => leave_child(value),
            "await-end" => {
                let pid = read_pid(&directory().join(value));
                wait_until("what another rank left has ended", || !is_running(pid));
            }
            "after" => {
                let pid = read_pid(&directory().join(format!("ready-{value}")));
                wait_until("the other rank has ended", || !is_running(pid));
            }
            "complain" => eprintln!("{value}"),
            "say" => writeln!(messages(), "{value}").unwrap(),
            "say-part" => write!(messages(), "{value}").unwrap(),
            "blame" => fail(value.parse().unwrap()),
            "wait-for-term" => wait_for(&terminated),
            "kill-self" => {
                let signal = Signal::from_named_raw(value.parse().unwrap()).unwrap();
                // Twice, since Rust's own handler of SIGSEGV gives way only after the first.
                kill_process(getpid(), signal).unwrap();
                kill_process(getpid(), signal).unwrap();
                sleep(Duration::from_secs(5));
            }
            "page-step" => page().enter(Phase::Training, value.parse().unwrap()),
            "page-call" => page().call_begun(value.parse().unwrap(), "all_reduce", 64),
            "page-done" => page().call_completed(value.parse().unwrap()),
            "page-wait-for-stop" => {
                wait_until("the page asks to stop", || page().stop_requested());
            }
            "exit" => return value.parse().unwrap(),
            "hang" => sleep(Duration::from_mins(1)),
            other => panic!("no such act: {other}"),
        }
    }
    0
}

/// A panic whose text does not depend on where this file stands.
fn panic_with(text: &str) -> ! {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap();
        eprintln!(
            "\nthread 'main' (77) panicked at src/worker.rs:12:5:\n{text}\nnote: run with \
             `RUST_BACKTRACE=1` environment variable to display a backtrace"
        );
    }));
    panic!("{text}");
}

/// Takes memory until it is killed, or has 2 GiB.
fn devour() {
    let mut taken = Vec::new();
    for _ in 0..2048 {
        taken.push(vec![1_u8; 1 << 20]);
    }
    panic!("{} MiB were there", taken.len());
}

fn wait_for(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(1));
    }
}

fn rank() -> usize {
    WorkerEnvironment::read(|name| std::env::var(name).ok())
        .unwrap()
        .rank
}

fn directory() -> PathBuf {
    std::env::var_os("TEST_DIRECTORY").unwrap().into()
}

fn write_pid(name: &str) {
    std::fs::write(directory().join(name), format!("{}\n", std::process::id())).unwrap();
}

fn messages() -> File {
    let number = std::env::var(names::MESSAGE_FD).unwrap();
    OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{number}"))
        .unwrap()
}

fn page() -> StatusPage {
    let number = std::env::var(names::STATUS_FD).unwrap().parse().unwrap();
    let memory = SharedMemory::inherited(number).unwrap();
    StatusPage::new(Arc::new(
        SharedWords::of(&memory, StatusPage::WORDS).unwrap(),
    ))
}

fn fail(blamed: usize) {
    let rank: usize = std::env::var(names::RANK).unwrap().parse().unwrap();
    let failure = Failure {
        rank,
        blames: (blamed != rank).then_some(blamed),
        code: 1,
        message: format!("rank {blamed} fell"),
        hint: None,
    };
    messages()
        .write_all(WorkerMessage::Failed(failure).to_line().as_bytes())
        .unwrap();
}

fn show_environment() {
    for (name, value) in std::env::vars() {
        println!("{name}={value}");
    }
    let stdin = std::fs::read_link("/proc/self/fd/0").unwrap();
    println!("stdin={}", stdin.display());
    let group = rustix::process::getpgrp()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    println!("leads_group={}", group == std::process::id());
}

fn show_descriptors() {
    let entries: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for path in entries {
        // The descriptor of the listing itself is closed by now.
        if let Ok(target) = std::fs::read_link(&path) {
            let number = path.file_name().unwrap().to_str().unwrap();
            println!("{number} {}", target.display());
        }
    }
    if let Ok(number) = std::env::var("TEST_SHARED_FD") {
        let text = std::fs::read_to_string(format!("/proc/self/fd/{number}")).unwrap();
        eprintln!("{text}");
    }
}

/// Lines on both streams, large writes, numbered.
fn flood(count: usize) {
    let (mut out, mut err) = (stdout().lock(), stderr().lock());
    for block in 0..count / 100 {
        let lines: Vec<_> = (0..100)
            .map(|i| {
                format!(
                    "{:08} {}
",
                    block * 100 + i,
                    "x".repeat(90)
                )
            })
            .collect();
        out.write_all(lines.concat().as_bytes()).unwrap();
        writeln!(err, "block {block}").unwrap();
    }
}

fn steps(count: u64) {
    let mut pipe = messages();
    for step in 1..=count {
        let progress = StepProgress {
            step,
            steps: count,
            loss: 2.5,
            grad_norm: 1.0,
            lr: 3e-4,
            tokens_per_s: 1e6,
            ranks: 2,
            step_s: 0.1,
            data_s: 0.0,
            comm_s: 0.0,
            comm_exposed_s: 0.0,
            memory_bytes: 1,
            due: true,
        };
        pipe.write_all(WorkerMessage::Step(progress).to_line().as_bytes())
            .unwrap();
    }
}

/// Starts a child that keeps every pipe open and ends before it.
fn leave_child(place: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--as-worker", "linger", place])
        .spawn()
        .unwrap();
    let file = directory().join("linger");
    while !file.exists() {
        sleep(Duration::from_millis(1));
    }
    println!("last words");
    if place == "outside" {
        child.wait().unwrap();
    } else {
        assert!(child.try_wait().unwrap().is_none());
    }
}

/// Prints for ever, in the worker's group, in a session of its own, or with a parent of its own too and
/// in the control group that the launcher is in.
fn linger(place: &str) {
    if place == "outside" {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--as-worker", "linger", "escaped"]);
        #[expect(clippy::zombie_processes, reason = "its parent ends first")]
        again.spawn().unwrap();
        return;
    }
    if place != "group" {
        setsid().unwrap();
    }
    if place == "escaped" {
        // Where that is not allowed there was no group of its own either.
        let _ = std::fs::write("/sys/fs/cgroup/unified/cgroup.procs", "0");
        let _ = std::fs::write("/sys/fs/cgroup/cgroup.procs", "0");
    }
    write_pid("linger.new");
    std::fs::rename(directory().join("linger.new"), directory().join("linger")).unwrap();
    // Ends when the reader of the pipe is gone.
    while writeln!(stdout(), "noise").is_ok() {
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_mins(1));
}
