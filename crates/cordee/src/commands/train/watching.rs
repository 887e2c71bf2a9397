//! Listens to the ranks of an attempt: shows what they say, and remembers what a restart needs.

use std::{io, path::Path, sync::Arc};

use cordee_launch::{Observer, Stream};
use cordee_metrics::AttemptEvent;
use cordee_protocol::WorkerMessage;

use super::{agent_page::AgentPage, board::Board, records::Records};
use crate::commands::ranks::Show;

/// The observer of one attempt.
pub(super) struct Watching<'a> {
    pub(super) show: &'a mut Show,
    pub(super) records: &'a mut Records,
    pub(super) board: &'a Arc<Board>,
    pub(super) page: &'a AgentPage,
    /// What is written down once all ranks have started, but for their processes.
    pub(super) started: Option<Started>,
    /// What this machine does not allow.
    pub(super) remarks: Vec<String>,
    /// Optimizer steps done.
    pub(super) step: u64,
    /// The step of the newest checkpoint.
    pub(super) checkpoint: Option<u64>,
}

/// The start of an attempt.
pub(super) struct Started {
    pub(super) attempt: usize,
    pub(super) host: String,
    /// The machines of all nodes, where there may be several.
    pub(super) hosts: Vec<String>,
    pub(super) ranks: usize,
    pub(super) checkpoint: Option<String>,
}

impl Observer for Watching<'_> {
    fn started(&mut self, _rank: usize, pid: u32) {
        self.board.started(pid);
        let pids = self.board.pids();
        let Some(started) = self.started.take_if(|it| it.ranks == pids.len()) else {
            return;
        };
        let event = AttemptEvent::Started {
            host: started.host,
            hosts: started.hosts,
            launcher_pid: std::process::id(),
            pids,
            step: self.step,
            checkpoint: started.checkpoint,
            remarks: std::mem::take(&mut self.remarks),
        };
        self.records.push(started.attempt, event, &mut self.show.0);
    }

    fn message(&mut self, rank: usize, message: WorkerMessage) {
        match &message {
            WorkerMessage::Step(progress) => {
                self.step = progress.step;
                self.page.step(progress);
            }
            WorkerMessage::Checkpoint { step, .. } => self.checkpoint = Some(*step),
            _ => {}
        }
        self.show.message(rank, message);
    }

    fn line(&mut self, rank: usize, stream: Stream, line: &str) {
        self.show.line(rank, stream, line);
    }

    fn lines_skipped(&mut self, rank: usize, lines: u64) {
        self.show.lines_skipped(rank, lines);
    }

    fn log_failed(&mut self, rank: usize, path: &Path, error: &io::Error) {
        self.show.log_failed(rank, path, error);
    }

    fn remark(&mut self, text: &str) {
        self.remarks.push(text.to_owned());
    }
}
