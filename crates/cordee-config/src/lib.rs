//! The schema of a run: parse, extend, override, validate, resolve.
//!
//! [`load()`] reads a file with what it extends and the `--set` arguments, and returns a [`Loaded`]
//! config in which every value knows its origin; [`Loaded::plan`] fills in what follows. Anything
//! wrong is a [`ConfigError`] that points at the line or the argument that someone wrote.
//!
//! It must not know how anything it configures works: it reads config files and nothing else, looks
//! at no data, counts no cores, and prints nothing.

#![forbid(unsafe_code)]

mod check;
mod describe;
mod diagnostic;
mod files;
mod fingerprint;
pub mod hugging_face;
mod init_from;
mod load;
mod names;
mod overrides;
mod plan;
mod reference;
mod render;
mod schema;
mod source;
mod tree;
mod units;
mod validate;

#[cfg(test)]
mod tests;

pub use diagnostic::{ConfigError, Diagnostic, Excerpt, Location};
pub use fingerprint::{decisive_values, differences};
pub use load::{Loaded, from_sets, load};
pub use plan::{Machine, Plan};
pub use reference::reference;
pub use schema::*;
pub use source::Origin;
pub use units::{ByteSize, Count, TimeSpan, UnitError};
