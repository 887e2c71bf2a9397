//! Where the threads of a process are in their program, as a debugger tells it.
//!
//! A debugger is asked where there is one: it can look into a process that answers nobody. It may need
//! longer than there is time, or be refused (`ptrace(2)`); then what the kernel tells has to do.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the debugger may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Functions of a thread that are worth a line.
const DEPTH: usize = 12;

/// A line for each thread: its number and name, and its functions, innermost first.
pub(crate) fn of(pid: u32) -> Vec<String> {
    debugger(pid).map_or_else(Vec::new, |text| summarise(&text))
}

fn debugger(pid: u32) -> Option<String> {
    let backtrace = format!("thread apply all backtrace -frame-arguments none -- {DEPTH}");
    let mut child = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &pid.to_string()])
        .args(["-ex", "set debuginfod enabled off", "-ex", &backtrace])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdout = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.read_to_end(&mut text);
        text
    });
    let started = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if started.elapsed() > DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(String::from_utf8_lossy(&reader.join().ok()?).into_owned())
}

/// Puts the frames of each thread on one line.
fn summarise(text: &str) -> Vec<String> {
    let mut threads: Vec<String> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("Thread ") {
            let name = head.split('"').nth(1).unwrap_or("thread");
            threads.push(format!("{name}:"));
        } else if let (Some(thread), Some(function)) = (threads.last_mut(), function(line)) {
            let between = if thread.ends_with(':') { " " } else { " < " };
            thread.push_str(between);
            thread.push_str(function);
        }
    }
    threads.retain(|thread| !thread.ends_with(':'));
    threads
}

/// The function of `#3  0x00007f in std::io::Read::read (self=...) at src/io.rs:7`.
fn function(line: &str) -> Option<&str> {
    let frame = line.strip_prefix('#')?;
    let frame = frame
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .trim_start();
    let frame = match frame.strip_prefix("0x") {
        Some(address) => address.split_once(" in ")?.1,
        None => frame,
    };
    let name = frame.split(" (").next()?.trim();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_thread_become_a_line() {
        let text = r#"[New LWP 12]
Thread 2 (Thread 0x7f (LWP 12) "metrics-lines"):
#0  0x00007f3a in syscall () from /lib/libc.so.6
#1  0x000055 in std::thread::park (...) at library/std/src/thread/mod.rs:1
Thread 1 (Thread 0x7e (LWP 11) "cordee"):
#0  read_shard (...) at src/shard.rs:9
#1  0x0000 in cordee_data::Loader::next (...)
"#;
        assert_eq!(
            summarise(text),
            [
                "metrics-lines: syscall < std::thread::park",
                "cordee: read_shard < cordee_data::Loader::next"
            ]
        );
    }
}
