//! Process groups, tested from outside: what every group has to do (`cordee_comm::conformance`), on threads and on
//! processes of their own, and what happens when ranks fail.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "these are tests, and so are their parts"
)]

mod faults;
mod joining;
mod processes;
mod threads;
