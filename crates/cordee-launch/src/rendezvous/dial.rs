//! The agent's end of a connection to the coordinator, which waits where the coordinator's does not.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use cordee_protocol::{Dialing, Inbox, Sealer, Secret, WELCOME_BYTES, WireError};

use super::message::{FromAgent, MOST_BYTES, ToAgent};

/// A connection that stands.
pub(super) struct Line {
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
}

/// What sends.
pub(super) struct Sending {
    stream: TcpStream,
    sealer: Sealer,
}

/// What receives.
pub(super) struct Receiving {
    pub(super) stream: TcpStream,
    inbox: Inbox,
    buffer: Vec<u8>,
}

/// Why nothing more comes over a connection.
#[derive(Debug)]
pub(super) enum Over {
    Closed,
    Unreadable(String),
}

/// Connects to an address and proves that this end knows the secret, as the other end does. Otherwise
/// says what came of it.
pub(super) fn dial(address: SocketAddr, secret: &Secret, within: Duration) -> Result<Line, String> {
    let until = Instant::now() + within;
    let stream = TcpStream::connect_timeout(&address, within).map_err(|error| told(&error))?;
    greet(stream, secret, until)
}

fn greet(mut stream: TcpStream, secret: &Secret, until: Instant) -> Result<Line, String> {
    let fault = |error: io::Error| told(&error);
    let _ = stream.set_nodelay(true);
    let dialing = Dialing::new(secret).map_err(fault)?;
    stream
        .set_write_timeout(Some(left(until).map_err(fault)?))
        .map_err(fault)?;
    stream.write_all(&dialing.hello()).map_err(fault)?;
    let mut welcome = [0; WELCOME_BYTES];
    read_by(&mut stream, &mut welcome, until).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "it closed the connection without a word: it is no cordee, or belongs to another job"
                .to_owned()
        }
        _ => told(&error),
    })?;
    let (proof, sealer, opener) = dialing
        .finish(&welcome)
        .map_err(|error: WireError| error.to_string())?;
    stream.write_all(&proof).map_err(fault)?;
    let other = stream.try_clone().map_err(fault)?;
    Ok(Line {
        sending: Sending {
            stream: other,
            sealer,
        },
        receiving: Receiving {
            stream,
            inbox: Inbox::new(opener, MOST_BYTES),
            buffer: vec![0; 64 << 10],
        },
    })
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused: nobody listens there".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

/// Reads all of it before the time is over, however slowly it comes.
fn read_by(stream: &mut TcpStream, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => bytes = &mut bytes[len..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Sending {
    /// How long to wait at most for a coordinator that takes nothing.
    pub(super) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(timeout))
    }

    /// A message in a frame, or its length where it is too long.
    pub(super) fn send(&mut self, message: &FromAgent) -> Result<io::Result<()>, usize> {
        let payload = match serde_json::to_vec(message) {
            Ok(payload) => payload,
            Err(error) => return Ok(Err(error.into())),
        };
        if payload.len() > MOST_BYTES {
            return Err(payload.len());
        }
        let sent = self.stream.write_all(&self.sealer.frame(&payload));
        if sent.is_err() {
            // Half a frame may be out. What the coordinator still has to say can be read.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(sent)
    }

    /// Ends the connection, for whoever reads from it too.
    pub(super) fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Receiving {
    /// Waits for bytes, for the time that the stream was given. Whether any came.
    pub(super) fn wait(&mut self) -> Result<bool, Over> {
        match self.stream.read(&mut self.buffer) {
            Ok(0) => Err(Over::Closed),
            Ok(len) => {
                self.inbox.push(&self.buffer[..len]);
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(_) => Err(Over::Closed),
        }
    }

    /// The next message that has come.
    pub(super) fn take(&mut self) -> Result<Option<ToAgent>, Over> {
        let unreadable = |what: String| Over::Unreadable(what);
        let payload = self.inbox.take();
        let Some(payload) = payload.map_err(|error| unreadable(error.to_string()))? else {
            return Ok(None);
        };
        serde_json::from_slice(&payload).map_err(|error| unreadable(format!("no message: {error}")))
    }
}
