//! Threads with names, for whoever looks at the launcher from outside.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread; unlike `std::thread::spawn` it says so when the system has no more.
pub(crate) fn start(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(body)
}
