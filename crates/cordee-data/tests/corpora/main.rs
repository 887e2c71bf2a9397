//! Whole corpora on disk: prepared, packed, cached, damaged, read.
#![expect(
    clippy::unwrap_used,
    reason = "these are tests, their helpers included"
)]

mod batches;
mod examples;
mod prepare;
mod support;
