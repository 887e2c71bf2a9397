//! What the launcher tells its caller while workers run.

use std::io;
use std::path::Path;

use cordee_protocol::WorkerMessage;

use crate::Ending;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The message pipe: the line is not a message that this version knows.
    Message,
}

/// Hears what workers say. All calls come from the thread that called [`crate::run`].
///
/// An observer may block (a paused terminal): workers, logs and supervision go on meanwhile. It gets
/// what one rank sent on one stream in order; across streams and ranks the order is that of arrival.
pub trait Observer {
    /// A worker was started.
    fn started(&mut self, rank: usize, pid: u32) {
        let _ = (rank, pid);
    }

    /// A worker sent a message. None is ever skipped.
    fn message(&mut self, rank: usize, message: WorkerMessage);

    /// A worker printed a line, given without its line feed; bytes that are not UTF-8 are replaced. The line is in
    /// the rank's log already.
    fn line(&mut self, rank: usize, stream: Stream, line: &str);

    /// The observer was too slow for this many lines of a rank. They are in its log.
    fn lines_skipped(&mut self, rank: usize, lines: u64);

    /// A rank's log cannot be written. Told once per rank; later lines are tried again.
    fn log_failed(&mut self, rank: usize, path: &Path, error: &io::Error);

    /// What this machine does not allow the launcher, or what it found and did before the start, in one
    /// line without a full stop. Nothing that a run needs.
    fn remark(&mut self, text: &str) {
        let _ = text;
    }

    /// A worker ended. `by_launcher` tells that it was killed because the run was over.
    fn ended(&mut self, rank: usize, ending: Ending, by_launcher: bool) {
        let _ = (rank, ending, by_launcher);
    }
}
