//! The real binary, run as a person would run it.

mod bad_input;
mod equality;
mod fixture;
mod interruption;
mod output;
mod resume;
