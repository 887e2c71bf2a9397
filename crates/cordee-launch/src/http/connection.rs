//! One client, from its first byte to the last, without waiting for it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags};

use super::answer::Desk;

/// How long a client may take to ask, and then to read the answer.
const ALLOWED: Duration = Duration::from_secs(5);
/// How long a client that has its answer may take to close.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes per read.
const CHUNK: usize = 4 << 10;

/// A connection, which carries one request and one answer.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    state: State,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    /// What it sent so far.
    Asking(Vec<u8>),
    /// The answer, and how much of it is sent.
    Answering(Vec<u8>, usize),
    /// It has its answer. A connection closed on bytes that were not read is reset, and the answer may
    /// be lost with it (RFC 9112, section 9.6), so the rest of what it sends is read and forgotten.
    Leaving,
}

impl Connection {
    /// Of a client that has just come.
    pub(super) fn new(stream: TcpStream, now: Instant) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            state: State::Asking(Vec::new()),
            deadline: now + ALLOWED,
        })
    }

    /// When it is to be closed, wherever it stands.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What it waits for.
    pub(super) fn polled(&self) -> PollFd<'_> {
        let flags = match self.state {
            State::Answering(..) => PollFlags::OUT,
            State::Asking(_) | State::Leaving => PollFlags::IN,
        };
        PollFd::from_borrowed_fd(self.stream.as_fd(), flags)
    }

    /// Goes on as far as it can without waiting. Whether the connection is still open.
    pub(super) fn advance(&mut self, desk: &Desk, now: Instant) -> bool {
        if let State::Asking(sent) = &mut self.state {
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(length) => sent.extend_from_slice(&chunk[..length]),
                Err(error) => return is_passing(&error),
            }
            if let Some(answer) = desk.answer(sent) {
                self.state = State::Answering(answer, 0);
                self.deadline = now + ALLOWED;
            }
        }
        if let State::Answering(answer, sent) = &mut self.state {
            // One write takes what the system has room for; another would be a wait.
            match self.stream.write(&answer[*sent..]) {
                Ok(length) => *sent += length,
                Err(error) => return is_passing(&error),
            }
            if *sent == answer.len() {
                if self.stream.shutdown(Shutdown::Write).is_err() {
                    return false;
                }
                self.state = State::Leaving;
                self.deadline = now + FAREWELL;
            }
            return true;
        }
        if let State::Leaving = self.state {
            match self.stream.read(&mut [0; CHUNK]) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return is_passing(&error),
            }
        }
        true
    }
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
