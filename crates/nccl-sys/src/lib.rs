//! NCCL's functions, opened at run time.
//!
//! A build needs no NCCL, and a program starts where there is none: [`Library::open`] looks for
//! `libnccl.so.2` at the places it is given. The types are those of `nccl.h`, as far as they are
//! used; names of functions are NCCL's without the prefix. What the functions do and what they want
//! of their callers is [NCCL's documentation](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html).
//!
//! This crate decides nothing: it does not know where a machine keeps its libraries, when to wait or
//! when to give up.

mod library;
mod types;

pub use library::{FILE_NAME, Functions, Library, OpenError, Tried};
pub use types::{
    Comm, Config, DataType, RawComm, ReductionOperation, Status, Stream, UniqueId, Version,
};
