//! What an ending means: its cause in words, and what to do next.
//!
//! A rank that says itself why it gives up is quoted. Else the signal, the exit code and the last lines
//! of the log are read as somebody with experience would read them. What is only likely is said to be
//! likely.

use cordee_protocol::ExitCode;

use crate::ending::signal_name;
use crate::last_words::{complaint, is_reason, panic_message, traceback_end};
use crate::{Ending, Silence, SilentRank};

/// Cause and next step, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Explanation {
    pub(crate) cause: String,
    pub(crate) hint: Option<String>,
    /// Whether the cause is sure enough that the log needs few lines.
    pub(crate) sure: bool,
}

impl Explanation {
    fn sure(cause: impl Into<String>, hint: &str) -> Self {
        Self {
            cause: cause.into(),
            hint: Some(hint.to_owned()),
            sure: true,
        }
    }

    fn likely(cause: impl Into<String>, hint: &str) -> Self {
        Self {
            sure: false,
            ..Self::sure(cause, hint)
        }
    }
}

const SILENT: &str = "unknown: it said nothing, neither to the launcher nor in its log";
const UNCLEAR: &str = "unknown; the last lines of its log may tell";
const ALONE: &str = "start its program by itself, with one rank, to see more";

/// Explains an ending of a rank that gave no reason itself; `lines` are the last of its log.
pub(crate) fn explain(ending: Ending, out_of_memory_kills: u64, lines: &[String]) -> Explanation {
    match ending {
        Ending::Killed { signal: 9, .. } => killed(out_of_memory_kills),
        Ending::Killed { signal: 6, .. } => aborted(lines),
        Ending::Killed { signal, .. } => of_signal(signal),
        Ending::Exited(code) => {
            let told = exited(code, lines);
            if out_of_memory_kills == 0 {
                return told;
            }
            // What is gone may be what it could not do without.
            let ours = killed(out_of_memory_kills);
            Explanation {
                cause: format!("{}; before that, perhaps: {}", told.cause, ours.cause),
                hint: ours.hint,
                sure: told.sure,
            }
        }
        Ending::Unknown => Explanation::likely(
            "unknown: the system did not say how it ended",
            "whoever started the launcher should not ignore SIGCHLD",
        ),
    }
}

/// What to do about an exit code of our table; 0 and 75 ask for nothing.
pub(crate) fn hint_for(code: ExitCode) -> Option<&'static str> {
    Some(match code {
        ExitCode::Done | ExitCode::Requeue => return None,
        ExitCode::Failed => {
            "start it again; if it fails in the same way, its log is the place to look"
        }
        ExitCode::Usage => "correct the config or the arguments: another try as it is cannot help",
        ExitCode::Environment => "`cordee doctor` says what this machine lacks",
        ExitCode::Diverged => {
            "go back to a checkpoint before it, with a lower `optimizer.lr` or a longer warm-up"
        }
        ExitCode::DoNotRequeue => "another try as it is is known to be useless",
        ExitCode::BadNode => "run it on another node, and have this one looked at",
        ExitCode::Hang => {
            "start it again; if it hangs again on this node, `cordee smoke` tests the node"
        }
        ExitCode::RendezvousTimeout => "see whether every node has started, and reaches the others",
    })
}

fn killed(out_of_memory_kills: u64) -> Explanation {
    let ended = match out_of_memory_kills {
        0 => {
            return Explanation::likely(
                "if you did not do that, the kernel's out-of-memory killer may have",
                "`dmesg` and the scheduler's log tell who killed it",
            );
        }
        1 => "1 process".to_owned(),
        count => format!("{count} processes"),
    };
    Explanation::sure(
        format!("out of memory: the kernel's out-of-memory killer ended {ended} of this run"),
        "give the job more memory, or let it need less: fewer ranks a node, fewer processes that load data",
    )
}

fn aborted(lines: &[String]) -> Explanation {
    let find = |needle: &str| lines.iter().rev().find(|line| line.contains(needle));
    if let Some(bytes) = find("memory allocation of ").and_then(|line| {
        let rest = line.split_once("memory allocation of ")?.1;
        rest.split_once(" bytes failed")?.0.parse::<u64>().ok()
    }) {
        return Explanation::sure(
            format!(
                "out of memory: it asked for {} and the system refused",
                amount(bytes)
            ),
            "give the job more memory, or see whether `ulimit -v` limits it; a size beyond reason is a bug",
        );
    }
    if find("has overflowed its stack").is_some() {
        return Explanation::sure(
            "a thread of it overflowed its stack: a recursion without end, or a stack that is too small",
            "try `ulimit -s` with twice the size, for threads RUST_MIN_STACK; if that does not help it is a bug",
        );
    }
    if let Some(message) = panic_message(lines) {
        return Explanation::sure(
            message,
            "that is a bug of the program: report it with the log",
        );
    }
    let heap = ["corrupted", "free(): ", "malloc(): ", "double free"];
    if let Some(line) = heap.iter().find_map(|needle| find(needle)) {
        return Explanation::sure(
            format!("its memory was corrupted by a bug in it or in a library: {line}"),
            CORE_DUMP,
        );
    }
    match complaint(lines) {
        Some(line) => Explanation::sure(format!("it gave up by itself: {line}"), CORE_DUMP),
        None => Explanation::likely(
            "it gave up by itself (`abort`); the last lines of its log may say why",
            CORE_DUMP,
        ),
    }
}

const CORE_DUMP: &str =
    "`ulimit -c unlimited` before the start leaves a core dump, which `gdb` reads";

fn of_signal(signal: i32) -> Explanation {
    let (cause, hint) = match signal {
        1 => (
            "the terminal or connection that it was started from was closed",
            "start it with `nohup`, in `tmux` or under a scheduler",
        ),
        2 | 3 => (
            "somebody interrupted this rank alone",
            "to stop a run, interrupt the launcher: it stops all ranks with a checkpoint",
        ),
        4 => (
            "it met an instruction that this processor does not have, or one that marks a bug",
            "see whether it was built for another processor (`-C target-cpu`, `-march`): build it here",
        ),
        5 => (
            "it met a breakpoint or an assertion of a library",
            CORE_DUMP,
        ),
        7 => (
            "it used memory with nothing behind it: a mapped file that was cut short, or a full /dev/shm",
            "see `df -h /dev/shm`, and whether something replaced or truncated a file of its data meanwhile",
        ),
        8 => (
            "it divided a whole number by zero, or overflowed in doing so",
            CORE_DUMP,
        ),
        11 => (
            "it touched memory that it does not have: a bug in it or in a library that it uses",
            CORE_DUMP,
        ),
        13 => (
            "it wrote into a pipe or connection whose reader was gone",
            "see what it writes to: a program that it started, or a server, ended before it",
        ),
        14 => ("an alarm went off that it had set itself", ALONE),
        15 => (
            "somebody asked this rank to stop, which it does not handle: the scheduler, a service or a user",
            "see the scheduler's log; to stop a run, signal the launcher: it stops all ranks with a checkpoint",
        ),
        24 => (
            "it used up the processor time that it was allowed",
            "raise the limit: `ulimit -t unlimited` before the start, or the scheduler's",
        ),
        25 => (
            "it wrote a file beyond the size that it was allowed",
            "raise the limit: `ulimit -f unlimited` before the start",
        ),
        31 => (
            "it made a system call that is forbidden here",
            "the container's seccomp profile decides that: allow the call, or run without the profile",
        ),
        _ => {
            return Explanation::likely(
                "something sent it that signal; the launcher did not",
                "`dmesg` and the scheduler's log may tell who",
            );
        }
    };
    Explanation::sure(cause, hint)
}

fn exited(code: i32, lines: &[String]) -> Explanation {
    let own_hint = ExitCode::from_code(code)
        .filter(|code| *code != ExitCode::Failed)
        .and_then(hint_for);
    let sure = |cause: String| {
        let hint = own_hint.or_else(|| hint_in(&cause)).unwrap_or(ALONE);
        Explanation::sure(cause, hint)
    };
    if let Some(message) = panic_message(lines) {
        let known = own_hint.or_else(|| hint_in(&message));
        let hint = known.unwrap_or("that is a bug of the program: report it with the log");
        return Explanation::sure(message, hint);
    }
    if let Some(line) = traceback_end(lines) {
        return sure(line.to_owned());
    }
    if lines.iter().any(|line| line.contains("\u{7f}ELF")) {
        return Explanation::sure(
            "its program is built for another kind of machine, and a shell tried to read it as a script",
            "`file` tells what a program is built for: build it for this machine",
        );
    }
    match code {
        101 => {
            return Explanation::likely(
                "101 is what a program in Rust exits with when it panics; its log does not say of what",
                ALONE,
            );
        }
        126 | 127 => {
            let what = if code == 126 {
                "may not be run"
            } else {
                "was not found"
            };
            return Explanation::sure(
                complaint(lines).map_or_else(
                    || format!("a program that it wanted to start {what}"),
                    |line| format!("a program that it wanted to start {what}: {line}"),
                ),
                "see whether the program is installed on this machine, executable, and in PATH",
            );
        }
        129..=159 => {
            let signal = code - 128;
            if let Some(name) = signal_name(signal) {
                let of_it = explain(
                    Ending::Killed {
                        signal,
                        core_dumped: false,
                    },
                    0,
                    lines,
                );
                return Explanation {
                    cause: format!(
                        "a program that it started was killed by {name}: {}",
                        of_it.cause
                    ),
                    ..of_it
                };
            }
        }
        _ => {}
    }
    match complaint(lines) {
        Some(line) if is_reason(line) || hint_in(line).is_some() => sure(line.to_owned()),
        Some(line) => Explanation::likely(
            format!("unknown, perhaps this line of its log: {line}"),
            own_hint.unwrap_or(ALONE),
        ),
        None => Explanation::likely(
            if lines.is_empty() { SILENT } else { UNCLEAR },
            own_hint.unwrap_or(ALONE),
        ),
    }
}

/// What to do about a rank that left others waiting.
pub(crate) fn hint_about(silent: &SilentRank) -> Option<String> {
    let rank = silent.rank;
    Some(match silent.silence {
        Silence::Running => return None,
        Silence::Stopped => {
            format!(
                "find out who stopped rank {rank}, `kill -STOP` or a debugger: all others wait for it"
            )
        }
        Silence::InKernel => format!(
            "`dmesg` may tell what rank {rank} waited for: a GPU that is lost, or a file server"
        ),
        Silence::Left(_) => format!(
            "see why rank {rank} was done earlier: ranks must take the same steps, on as much data each"
        ),
    })
}

/// What to do about a message, by words that mean the same in every program.
fn hint_in(message: &str) -> Option<&'static str> {
    // A line that names a missing library also says that there is no such file.
    const KNOWN: [(&str, &str); 16] = [
        (
            "cannot open shared object file",
            "`ldd` shows the libraries that a program needs; LD_LIBRARY_PATH names directories to look in",
        ),
        (
            "CUDA out of memory",
            "use a smaller micro-batch, or recompute more; `nvidia-smi` shows who else is on the GPU",
        ),
        (
            "CUDA_ERROR_OUT_OF_MEMORY",
            "use a smaller micro-batch, or recompute more; `nvidia-smi` shows who else is on the GPU",
        ),
        (
            "ECC error",
            "the GPU is damaged: run elsewhere, and have this node looked at",
        ),
        (
            "No space left on device",
            "make room on the disk, or write elsewhere",
        ),
        (
            "Disk quota exceeded",
            "make room within the quota, or write elsewhere",
        ),
        (
            "Read-only file system",
            "write elsewhere, or see why the file system was mounted so",
        ),
        (
            "Too many open files",
            "raise the limit: `ulimit -n` before the start",
        ),
        (
            "Permission denied",
            "see whose the file is, and which user the run has",
        ),
        (
            "No such file or directory",
            "see whether the path is right, and there on this machine",
        ),
        (
            "Address already in use",
            "another process has that port: end it, or give another port",
        ),
        (
            "Connection refused",
            "see whether the other side runs, and whether host and port are right",
        ),
        (
            "No module named",
            "install the module for the Python that runs the program",
        ),
        (
            "Cannot allocate memory",
            "give the job more memory, or let it need less",
        ),
        (
            "MemoryError",
            "give the job more memory, or let it need less",
        ),
        (
            "Stale file handle",
            "the file server lost the file: see whether the mount is healthy, and try again",
        ),
    ];
    let found = KNOWN.iter().find(|(words, _)| message.contains(words));
    found.map(|(_, hint)| *hint)
}

/// Bytes, and in a unit that says something.
fn amount(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.iter().find(|(power, _)| bytes >> power > 0);
    unit.map_or(format!("{bytes} bytes"), |(power, name)| {
        format!("{:.1} {name}", bytes as f64 / f64::from(1_u32 << power))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ending: Ending, lines: &[&str]) -> Explanation {
        let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        explain(ending, 0, &lines)
    }

    fn signal(signal: i32) -> Ending {
        Ending::Killed {
            signal,
            core_dumped: false,
        }
    }

    #[test]
    fn every_signal_and_code_has_a_cause_and_a_hint() {
        let endings = (1..65).map(signal).chain((1..256).map(Ending::Exited));
        for ending in endings.chain([Ending::Unknown]) {
            for lines in [&[][..], &["epoch 1"]] {
                let told = of(ending, lines);
                assert!(!told.cause.is_empty(), "{ending}");
                assert!(
                    told.hint.is_some() || ending == Ending::Exited(75),
                    "{ending}"
                );
                assert!(!told.cause.ends_with('.'), "{}", told.cause);
            }
        }
    }

    #[test]
    fn a_refused_allocation_is_told_in_units() {
        let line = "memory allocation of 5368709120 bytes failed";
        assert_eq!(
            of(signal(6), &["x", line]).cause,
            "out of memory: it asked for 5.0 GiB and the system refused"
        );
        assert_eq!(amount(900), "900 bytes");
        assert_eq!(amount(3 << 19), "1.5 MiB");
    }

    #[test]
    fn what_the_kernel_killed_may_have_been_needed() {
        let lines =
            ["RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed".to_owned()];
        let told = explain(Ending::Exited(1), 1, &lines);
        assert_eq!(
            told.cause,
            "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed; before that, perhaps: out of \
             memory: the kernel's out-of-memory killer ended 1 process of this run"
        );
    }

    #[test]
    fn a_shell_passes_on_the_signal_of_its_child() {
        let told = of(Ending::Exited(139), &[]);
        assert!(
            told.cause
                .starts_with("a program that it started was killed by SIGSEGV: it touched memory"),
            "{}",
            told.cause
        );
    }

    #[test]
    fn words_of_the_system_bring_a_hint() {
        let hint = |line: &str| of(Ending::Exited(1), &[line]).hint.unwrap();
        assert!(hint("error: write a.bin: No space left on device (os error 28)").contains("room"));
        assert!(
            hint("x: error while loading shared libraries: libfoo.so.1: cannot open shared object file: No such file or directory")
                .contains("ldd")
        );
        assert_eq!(hint("error: it rained"), ALONE);
        let told = of(Ending::Exited(1), &["eval 3: error rate 0.2"]);
        assert!(told.cause.starts_with("unknown, perhaps") && !told.sure);
    }
}
