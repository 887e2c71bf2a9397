//! What travels from the threads of a launch to the thread that calls the observer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use cordee_protocol::WorkerMessage;

use crate::{Ending, Outcome, Stream};

/// Bytes of lines that may wait for the observer, all ranks together. Past it lines go to the logs
/// only: a paused terminal must neither stop training nor eat the host's memory.
const BACKLOG: usize = 16 << 20;

/// One thing to tell the observer.
#[derive(Debug)]
pub(crate) enum Notice {
    Message {
        rank: usize,
        message: WorkerMessage,
    },
    /// Complete lines, each with its line feed.
    Lines {
        rank: usize,
        stream: Stream,
        lines: String,
    },
    LinesSkipped {
        rank: usize,
        lines: u64,
    },
    LogFailed {
        rank: usize,
        error: io::Error,
    },
    Ended {
        rank: usize,
        ending: Ending,
        by_launcher: bool,
    },
    /// The last one: how the run ended, or the panic that ended its supervision.
    Finished(std::thread::Result<Outcome>),
}

/// The sending end, for one rank's reader.
#[derive(Debug)]
pub(crate) struct Outlet {
    rank: usize,
    sender: Sender<Notice>,
    waiting: Arc<AtomicUsize>,
    skipped: u64,
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Inlet {
    receiver: Receiver<Notice>,
    sender: Sender<Notice>,
    waiting: Arc<AtomicUsize>,
}

impl Inlet {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = channel();
        Self {
            receiver,
            sender,
            waiting: Arc::default(),
        }
    }

    pub(crate) fn outlet(&self, rank: usize) -> Outlet {
        Outlet {
            rank,
            sender: self.sender.clone(),
            waiting: Arc::clone(&self.waiting),
            skipped: 0,
        }
    }

    /// A sender for notices that are no lines.
    pub(crate) fn sender(&self) -> Sender<Notice> {
        self.sender.clone()
    }

    pub(crate) fn next(&self) -> Notice {
        let notice = self
            .receiver
            .recv()
            .expect("the inlet holds a sender itself");
        if let Notice::Lines { lines, .. } = &notice {
            self.waiting.fetch_sub(lines.len(), Ordering::Relaxed);
        }
        notice
    }
}

impl Outlet {
    pub(crate) fn message(&self, message: WorkerMessage) {
        self.send(Notice::Message {
            rank: self.rank,
            message,
        });
    }

    pub(crate) fn log_failed(&self, error: io::Error) {
        self.send(Notice::LogFailed {
            rank: self.rank,
            error,
        });
    }

    /// Passes complete lines on, or counts them where the observer is too far behind.
    pub(crate) fn lines(&mut self, stream: Stream, lines: &[u8]) {
        if self.waiting.load(Ordering::Relaxed) + lines.len() > BACKLOG {
            self.skipped += lines.split_inclusive(|&byte| byte == b'\n').count() as u64;
            return;
        }
        self.tell_skipped();
        let lines = String::from_utf8_lossy(lines).into_owned();
        self.waiting.fetch_add(lines.len(), Ordering::Relaxed);
        self.send(Notice::Lines {
            rank: self.rank,
            stream,
            lines,
        });
    }

    /// Reports lines skipped so far.
    pub(crate) fn tell_skipped(&mut self) {
        let lines = std::mem::take(&mut self.skipped);
        if lines > 0 {
            self.send(Notice::LinesSkipped {
                rank: self.rank,
                lines,
            });
        }
    }

    fn send(&self, notice: Notice) {
        // Nobody listens any more only once the run is over.
        let _ = self.sender.send(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observer_far_behind_is_told_how_much_it_missed() {
        let inlet = Inlet::new();
        let mut outlet = inlet.outlet(3);
        let big = [vec![b'x'; BACKLOG - 1], vec![b'\n']].concat();
        outlet.lines(Stream::Stdout, &big);
        outlet.lines(Stream::Stdout, b"a\nb\n");
        outlet.message(WorkerMessage::Warning {
            rank: 3,
            text: "kept".to_owned(),
        });
        assert!(matches!(inlet.next(), Notice::Lines { .. }));
        outlet.lines(Stream::Stderr, b"c\n");
        assert!(matches!(inlet.next(), Notice::Message { .. }));
        assert!(matches!(
            inlet.next(),
            Notice::LinesSkipped { rank: 3, lines: 2 }
        ));
        assert!(
            matches!(inlet.next(), Notice::Lines { stream: Stream::Stderr, lines, .. } if lines == "c\n")
        );
    }
}
