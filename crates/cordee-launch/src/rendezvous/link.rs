//! One connection at the coordinator: bytes in and out, never waiting.
//!
//! Until the other end has proved that it knows the secret, nothing is read but the greeting, and nothing
//! is kept but the few bytes of it that have come.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use cordee_protocol::{Answering, HELLO_BYTES, Inbox, PROOF_BYTES, Sealer, Secret, WireError};

use super::{
    Loss,
    message::{FromAgent, MOST_BYTES, ToAgent},
};

/// Read at once, so that one connection does not hold up the others.
const PORTION: usize = 64 << 10;
/// What may wait to be sent.
const MOST_PENDING: usize = 4 * MOST_BYTES;

pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) opened: Duration,
    stage: Stage,
    pending: Vec<u8>,
    sent: usize,
    /// When something was sent last, or nothing was to be.
    progress: Duration,
    /// Since when it is to be closed.
    pub(super) closing: Option<Duration>,
    /// Whether the socket is asked to tell when it takes more.
    pub(super) watched_for_room: bool,
}

enum Stage {
    Hello(Partial<HELLO_BYTES>),
    Proof(Answering, Partial<PROOF_BYTES>),
    Standing(Box<(Sealer, Inbox)>),
}

struct Partial<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Partial<N> {
    fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// Reads what is missing and nothing more. Whether all is there.
    fn fill(&mut self, stream: &mut TcpStream) -> Result<Option<[u8; N]>, Loss> {
        match stream.read(&mut self.bytes[self.len..]) {
            Ok(0) => return Err(Loss::Closed),
            Ok(more) => self.len += more,
            Err(error) if is_later(&error) => {}
            Err(_) => return Err(Loss::Closed),
        }
        Ok((self.len == N).then_some(self.bytes))
    }
}

/// What reading brought.
#[derive(Default)]
pub(super) struct Received {
    /// That the other end has just proved that it belongs to the job.
    pub(super) stands: bool,
    pub(super) messages: Vec<FromAgent>,
    /// That this was the last: what came before is to be heard first.
    pub(super) loss: Option<Loss>,
}

impl Link {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, now: Duration) -> Self {
        Self {
            stream,
            peer,
            opened: now,
            stage: Stage::Hello(Partial::new()),
            pending: Vec::new(),
            sent: 0,
            progress: now,
            closing: None,
            watched_for_room: false,
        }
    }

    pub(super) fn stands(&self) -> bool {
        matches!(self.stage, Stage::Standing(_))
    }

    /// Whether it is this end that has proved something, and the other has not.
    pub(super) fn is_half_way(&self) -> bool {
        matches!(self.stage, Stage::Proof(..))
    }

    /// Reads what has come, up to a portion.
    pub(super) fn receive(&mut self, secret: &Secret, buffer: &mut Vec<u8>) -> Received {
        let mut received = Received::default();
        received.loss = self.try_receive(secret, buffer, &mut received).err();
        received
    }

    fn try_receive(
        &mut self,
        secret: &Secret,
        buffer: &mut Vec<u8>,
        received: &mut Received,
    ) -> Result<(), Loss> {
        if !self.stands() {
            received.stands = self.greet(secret)?;
            if !received.stands {
                return Ok(());
            }
        }
        let Stage::Standing(standing) = &mut self.stage else {
            return Ok(());
        };
        buffer.resize(PORTION, 0);
        let len = match self.stream.read(buffer) {
            Ok(0) => return Err(Loss::Closed),
            Ok(len) => len,
            Err(error) if is_later(&error) => return Ok(()),
            Err(_) => return Err(Loss::Closed),
        };
        if self.closing.is_some() {
            return Ok(());
        }
        let inbox = &mut standing.1;
        inbox.push(&buffer[..len]);
        while let Some(payload) = inbox.take().map_err(|error| unreadable(&error))? {
            let message = serde_json::from_slice(&payload)
                .map_err(|error| Loss::Unreadable(format!("no message: {error}")))?;
            received.messages.push(message);
        }
        Ok(())
    }

    /// Gets on with the greeting. Whether it is over.
    fn greet(&mut self, secret: &Secret) -> Result<bool, Loss> {
        match &mut self.stage {
            Stage::Hello(partial) => {
                if let Some(hello) = partial.fill(&mut self.stream)? {
                    let answering = Answering::new(secret, &hello)
                        .map_err(|error| Loss::Unreadable(error.to_string()))?
                        .map_err(|error| unreadable(&error))?;
                    self.pending.extend_from_slice(&answering.welcome());
                    self.stage = Stage::Proof(answering, Partial::new());
                }
                return Ok(false);
            }
            Stage::Proof(_, partial) => {
                let Some(proof) = partial.fill(&mut self.stream)? else {
                    return Ok(false);
                };
                let stage = std::mem::replace(&mut self.stage, Stage::Hello(Partial::new()));
                if let Stage::Proof(answering, _) = stage {
                    let (sealer, opener) = answering
                        .finish(&proof)
                        .map_err(|error| unreadable(&error))?;
                    let inbox = Inbox::new(opener, MOST_BYTES);
                    self.stage = Stage::Standing(Box::new((sealer, inbox)));
                }
            }
            Stage::Standing(_) => {}
        }
        Ok(true)
    }

    /// Takes a message to be sent.
    pub(super) fn queue(&mut self, message: &ToAgent) -> Result<(), Loss> {
        let Stage::Standing(standing) = &mut self.stage else {
            return Ok(());
        };
        let unreadable = |what: String| Loss::Unreadable(what);
        let payload = serde_json::to_vec(message).map_err(|error| unreadable(error.to_string()))?;
        if payload.len() > MOST_BYTES {
            return Err(unreadable(format!(
                "what was to be sent to it has {} bytes",
                payload.len()
            )));
        }
        let (length, code) = standing.0.seal(&[&payload]);
        for part in [&length[..], &payload, &code] {
            self.pending.extend_from_slice(part);
        }
        if self.pending.len() - self.sent > MOST_PENDING {
            return Err(Loss::DoesNotRead);
        }
        Ok(())
    }

    /// Sends what the socket takes.
    pub(super) fn send(&mut self, now: Duration) -> Result<(), Loss> {
        while self.is_pending() {
            match self.stream.write(&self.pending[self.sent..]) {
                Ok(0) => return Err(Loss::Closed),
                Ok(len) => {
                    self.sent += len;
                    self.progress = now;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_later(&error) => return Ok(()),
                Err(_) => return Err(Loss::Closed),
            }
        }
        self.pending.clear();
        self.sent = 0;
        self.progress = now;
        if self.closing.is_some() {
            // Whoever closes with bytes unread takes back what the other end has not read yet. So the
            // other end closes first, or its time runs out.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    pub(super) fn is_pending(&self) -> bool {
        self.sent < self.pending.len()
    }

    /// For how long the other end has taken nothing of what waits.
    pub(super) fn stuck(&self, now: Duration) -> Duration {
        if self.is_pending() {
            now.saturating_sub(self.progress)
        } else {
            Duration::ZERO
        }
    }
}

fn unreadable(error: &WireError) -> Loss {
    Loss::Unreadable(error.to_string())
}

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
