//! The launcher at work on real processes.
//!
//! This binary plays every part: the tests run in it one after the other on the main thread, where a
//! launch must be made, and it starts itself as the workers and as a launcher to be killed.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the whole binary is a test"
)]

mod failures;
mod hangs;
mod orphans;
mod output;
mod processes;
mod stage;
mod stopping;
mod texts;
mod worker;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    match first.as_deref() {
        Some("--as-worker") => return ExitCode::from(worker::main(&arguments.collect::<Vec<_>>())),
        Some("--as-launcher") => {
            return processes::launcher(&arguments.next().unwrap(), &arguments.next().unwrap());
        }
        Some("--as-limited-launcher") => {
            return texts::launcher(&arguments.next().unwrap(), &arguments.next().unwrap());
        }
        _ => {}
    }
    // Of the standard harness's arguments only names are understood: a test runs if one is part of its own.
    let filters: Vec<String> = first
        .into_iter()
        .chain(arguments)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let tests = [
        failures::TESTS,
        hangs::TESTS,
        orphans::TESTS,
        output::TESTS,
        processes::TESTS,
        stopping::TESTS,
        texts::TESTS,
    ]
    .concat();
    // Whoever else tests here has groups of their own.
    let _apart = orphans::Apart::enter();
    let mut failed = 0;
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let start = Instant::now();
        let passed = catch_unwind(test).is_ok();
        println!(
            "test {name} ... {} ({:.2?})",
            if passed { "ok" } else { "FAILED" },
            start.elapsed()
        );
        failed += u8::from(!passed);
    }
    ExitCode::from(failed)
}
