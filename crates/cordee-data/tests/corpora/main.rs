//! Whole corpora on disk: prepared, cached, damaged, read.

mod batches;
mod prepare;
mod support;
