//! The group of ranks on several machines: every case of every group, what a network may do to it, and who
//! may not take part. Machines are threads here, each with memory of its own, over the loopback.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "these are tests, and so are their parts"
)]

mod cases;
mod faults;
mod job;
mod strangers;
