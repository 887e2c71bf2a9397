//! Reads what one worker says: into its log first, then to the observer.

use std::io::{ErrorKind, PipeReader, Read};

use cordee_protocol::{Failure, WorkerMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::fcntl_getpipe_size;

use crate::Stream;
use crate::lines::LineCutter;
use crate::log::RankLog;
use crate::notice::Outlet;
use crate::spawn::Pipes;

/// Bytes per read.
const CHUNK: usize = 64 << 10;
/// Bytes after which a line without end is cut.
const LINE_LIMIT: usize = 64 << 10;
/// The same for messages, which may hold generated text.
const MESSAGE_LIMIT: usize = 4 << 20;

/// What is known of a rank when all it said has been read.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    /// Its `Failed` message.
    pub(crate) failure: Option<Failure>,
    /// The last step it reported.
    pub(crate) step: Option<u64>,
    /// The last lines of its log.
    pub(crate) lines: Vec<String>,
}

/// The reader of one worker.
#[derive(Debug)]
pub(crate) struct Reader {
    sources: [Source; 3],
    /// Closed by the other end when the worker's process has ended.
    alive: PipeReader,
    sink: Sink,
}

#[derive(Debug)]
struct Source {
    stream: Stream,
    /// `None` once it ended.
    pipe: Option<PipeReader>,
    lines: LineCutter,
}

/// Where lines go.
#[derive(Debug)]
struct Sink {
    log: RankLog,
    log_failed: bool,
    outlet: Outlet,
    failure: Option<Failure>,
    step: Option<u64>,
}

impl Reader {
    /// `alive` must end when the process does.
    pub(crate) fn new(pipes: Pipes, alive: PipeReader, log: RankLog, outlet: Outlet) -> Self {
        let source = |stream, pipe, limit| Source {
            stream,
            pipe: Some(pipe),
            lines: LineCutter::new(limit),
        };
        let sources = [
            source(Stream::Stdout, pipes.stdout, LINE_LIMIT),
            source(Stream::Stderr, pipes.stderr, LINE_LIMIT),
            source(Stream::Message, pipes.messages, MESSAGE_LIMIT),
        ];
        let sink = Sink {
            log,
            log_failed: false,
            outlet,
            failure: None,
            step: None,
        };
        Self {
            sources,
            alive,
            sink,
        }
    }

    /// Reads until every pipe ended, or the process did and its pipes hold nothing more of it.
    pub(crate) fn run(mut self) -> LastWords {
        let mut chunk = vec![0; CHUNK];
        while self.wait_and_read(&mut chunk) {}
        for source in &mut self.sources {
            source.drain(&mut chunk, &mut self.sink);
        }
        self.sink.outlet.tell_skipped();
        LastWords {
            failure: self.sink.failure,
            step: self.sink.step,
            lines: self.sink.log.into_tail(),
        }
    }

    /// Waits for something to read and reads it. False when the worker is gone or silent for good.
    fn wait_and_read(&mut self, chunk: &mut [u8]) -> bool {
        let mut ready = [false; 3];
        {
            let mut fds = vec![PollFd::new(&self.alive, PollFlags::IN)];
            let open = || {
                self.sources
                    .iter()
                    .enumerate()
                    .filter_map(|(i, source)| Some((i, source.pipe.as_ref()?)))
            };
            fds.extend(open().map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN)));
            if fds.len() == 1 {
                return false;
            }
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => return true,
                Err(_) => return false,
            }
            if !fds[0].revents().is_empty() {
                return false;
            }
            for ((index, _), fd) in open().zip(&fds[1..]) {
                ready[index] = !fd.revents().is_empty();
            }
        }
        for (source, _) in self
            .sources
            .iter_mut()
            .zip(ready)
            .filter(|(_, ready)| *ready)
        {
            source.read(chunk, &mut self.sink);
        }
        true
    }
}

impl Source {
    /// Reads once, without waiting if poll said that there is something; gives the number of bytes.
    fn read(&mut self, chunk: &mut [u8], sink: &mut Sink) -> usize {
        let Some(pipe) = &mut self.pipe else { return 0 };
        match pipe.read(chunk) {
            Ok(0) => self.close(sink),
            Ok(count) => {
                let lines = self.lines.push(&chunk[..count]);
                sink.take(self.stream, &lines);
                return count;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.close(sink),
        }
        0
    }

    fn close(&mut self, sink: &mut Sink) {
        self.pipe = None;
        sink.take(self.stream, &self.lines.finish());
    }

    /// Reads what a process that ended has left in the pipe.
    ///
    /// All of it is there already, and no more than the pipe holds. Waiting for the end of the pipe
    /// instead could take forever: a process that the worker started may keep it open, or keep writing.
    fn drain(&mut self, chunk: &mut [u8], sink: &mut Sink) {
        let Some(pipe) = &self.pipe else { return };
        let mut left = fcntl_getpipe_size(pipe).unwrap_or(CHUNK);
        while left > 0 && self.is_ready() {
            let limit = left.min(chunk.len());
            left -= self.read(&mut chunk[..limit], sink);
        }
        if self.pipe.is_some() {
            self.close(sink);
        }
    }

    fn is_ready(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| {
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            matches!(
                poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&now)),
                Ok(1) | Err(Errno::INTR)
            )
        })
    }
}

impl Sink {
    /// Takes complete lines of one stream.
    fn take(&mut self, stream: Stream, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        match stream {
            Stream::Stdout | Stream::Stderr => self.write(stream, lines),
            Stream::Message => lines
                .split_inclusive(|&byte| byte == b'\n')
                .for_each(|line| self.message(line)),
        }
    }

    fn message(&mut self, line: &[u8]) {
        let parsed = std::str::from_utf8(line)
            .ok()
            .and_then(|line| WorkerMessage::from_line(line.trim_end()).ok());
        let Some(message) = parsed else {
            return self.write(Stream::Message, line);
        };
        match &message {
            // The first one is the reason; a later one can only be about the way down.
            WorkerMessage::Failed(failure) => {
                self.failure.get_or_insert_with(|| failure.clone());
            }
            WorkerMessage::Step(progress) => self.step = Some(progress.step),
            _ => {}
        }
        self.outlet.message(message);
    }

    fn write(&mut self, stream: Stream, lines: &[u8]) {
        if let Err(error) = self.log.append(lines)
            && !std::mem::replace(&mut self.log_failed, true)
        {
            self.outlet.log_failed(error);
        }
        self.outlet.lines(stream, lines);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};
    use std::sync::mpsc::channel;
    use std::thread;

    use rustix::pipe::fcntl_setpipe_size;

    use super::*;
    use crate::notice::Inlet;

    #[test]
    fn what_a_dead_worker_left_is_read_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let [
            (stdout, mut left_by_worker),
            (stderr, _),
            (messages, _),
            (alive, lifeline),
        ] = std::array::from_fn(|_| pipe().unwrap());
        // Larger than one read, so that there is time to fill it again.
        let capacity = fcntl_setpipe_size(&stdout, 1 << 20).unwrap();
        left_by_worker
            .write_all(&b"w\n".repeat(capacity / 2))
            .unwrap();
        drop(lifeline);
        // Another process that has the pipe and fills it again as fast as it is read.
        let (started, starts) = channel();
        let other = thread::spawn(move || {
            started.send(()).unwrap();
            while left_by_worker.write_all(&b"o\n".repeat(100_000)).is_ok() {}
        });
        starts.recv().unwrap();
        let log = RankLog::open(&path, 1).unwrap();
        let pipes = Pipes {
            stdout,
            stderr,
            messages,
        };
        let words = Reader::new(pipes, alive, log, Inlet::new().outlet(0)).run();
        other.join().unwrap();
        assert_eq!(words.lines, ["w"; 100]);
        assert_eq!(fs_err::read(&path).unwrap(), b"w\n".repeat(capacity / 2));
    }
}
