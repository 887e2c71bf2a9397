//! What is shown of processes that know nothing of cordee.

use std::{io, path::Path};

use cordee_launch::{Observer, Stream};
use cordee_protocol::WorkerMessage;

use crate::{
    commands::ranks,
    console::{Console, ProgressMode},
};

/// Passes on what rank 0 prints, each stream where it belongs; of the others shows what looks like an
/// error, and leaves the rest to their logs.
pub(super) struct Show(ranks::Show);

impl Show {
    pub(super) fn new() -> Self {
        Self(ranks::Show(Console::new(ProgressMode::Plain)))
    }

    pub(super) fn console(&mut self) -> &mut Console {
        &mut self.0.0
    }
}

impl Observer for Show {
    fn message(&mut self, rank: usize, message: WorkerMessage) {
        self.0.message(rank, message);
    }

    fn line(&mut self, rank: usize, stream: Stream, line: &str) {
        match (rank, stream) {
            (0, Stream::Stdout) => Console::print_data(&format!("{line}\n")),
            (_, Stream::Stdout) => {}
            (_, Stream::Stderr | Stream::Message) => self.0.line(rank, stream, line),
        }
    }

    fn lines_skipped(&mut self, rank: usize, lines: u64) {
        self.0.lines_skipped(rank, lines);
    }

    fn log_failed(&mut self, rank: usize, path: &Path, error: &io::Error) {
        self.0.log_failed(rank, path, error);
    }
}
