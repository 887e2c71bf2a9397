//! Whole corpora on disk: prepared, cached, damaged, read.
#![expect(
    clippy::unwrap_used,
    reason = "these are tests, their helpers included"
)]

mod batches;
mod prepare;
mod support;
