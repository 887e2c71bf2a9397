//! The schema of a run: parse, extend, override, validate, resolve.
#![forbid(unsafe_code)]

mod schema;
mod units;

pub use schema::*;
pub use units::{ByteSize, Count, TimeSpan};
