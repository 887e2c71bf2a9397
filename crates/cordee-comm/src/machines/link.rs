//! One connection to a rank of a neighbouring machine.

use std::{
    collections::VecDeque,
    io::{self, BufReader, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, PoisonError, mpsc::SyncSender},
    thread,
    time::Duration,
};

use cordee_protocol::{CODE_BYTES, LENGTH_BYTES, Opener, Sealer};

use super::{
    Side,
    frame::{CALL_BYTES, Frame, HEADER_BYTES, Header, Kind, PIECE_BYTES, Pool},
};

/// Frames with data that may be on their way, not taken in by the other end.
pub(super) const WINDOW: usize = 8;

/// Longest single wait for room in a socket.
pub(super) const SLICE: Duration = Duration::from_millis(50);

/// Bytes of a reason that peers get to read.
const REASON_BYTES: usize = 512;

const _: () = assert!(PIECE_BYTES >= CALL_BYTES && PIECE_BYTES >= REASON_BYTES);

/// What is said of a rank that goes in order, to one that waits for it.
pub(super) const LEFT: &str = "it left the group";

/// Something that came over a connection, or its end.
pub(super) type Arrival = (Side, Result<Frame, String>);

/// Why a connection is of no more use: the rank to look at, and what happened.
pub(super) type End = (usize, String);

/// The sending end, and what has come and is not looked at yet.
pub(super) struct Link {
    /// The rank at the other end.
    pub(super) peer: usize,
    stream: TcpStream,
    sealer: Sealer,
    /// Frames that were sent and that the other end has not taken in.
    unacknowledged: usize,
    /// What is to be sent once the other end has taken in more.
    waiting: VecDeque<Frame>,
    /// What has come, in order.
    pub(super) arrived: VecDeque<Frame>,
    /// Frames taken in since the other end was told.
    taken: usize,
    pool: Pool,
    /// Whether a frame was begun and not ended: what came after would be taken for the rest of it.
    torn: bool,
    /// Why it is of no more use, found out by whoever found it first.
    end: Arc<Mutex<Option<End>>>,
    /// Whether the other end has said that it makes the same call.
    pub(super) agreed: bool,
    /// Whether the other end has done all its calls, and is gone.
    pub(super) left: bool,
}

impl Link {
    /// Begins to receive, in a thread of its own: what comes goes to `arrivals`.
    pub(super) fn start(
        side: Side,
        peer: usize,
        stream: TcpStream,
        (sealer, opener): (Sealer, Opener),
        (arrivals, pool): (SyncSender<Arrival>, Pool),
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(SLICE))?;
        let reading = stream.try_clone()?;
        let end = Arc::new(Mutex::new(None));
        let told = Arc::clone(&end);
        let receiver = Receiving {
            stream: BufReader::with_capacity(PIECE_BYTES / 4, reading),
            opener,
            pool: pool.clone(),
        };
        thread::Builder::new()
            .name(format!("from {peer}"))
            .spawn(move || receiver.run(side, peer, &arrivals, &told))?;
        Ok(Self {
            peer,
            stream,
            sealer,
            unacknowledged: 0,
            waiting: VecDeque::new(),
            arrived: VecDeque::new(),
            taken: 0,
            pool,
            torn: false,
            end,
            agreed: false,
            left: false,
        })
    }

    /// Why it is of no more use, if it is not.
    pub(super) fn end(&self) -> Option<End> {
        self.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether another frame with data may be given to [`Self::push`].
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WINDOW
    }

    /// Whether all that was given is on its way.
    pub(super) fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the other end has not taken in all that was sent.
    pub(super) fn is_owed(&self) -> bool {
        self.unacknowledged > 0
    }

    /// Notes that it never will.
    pub(super) fn owe_nothing(&mut self) {
        self.unacknowledged = 0;
    }

    /// Takes a frame with data, to be sent by [`Self::flush`].
    pub(super) fn push(&mut self, frame: Frame) {
        self.waiting.push_back(frame);
    }

    /// Notes that the other end has taken in frames.
    pub(super) fn acknowledged(&mut self, count: u32) {
        self.unacknowledged = self.unacknowledged.saturating_sub(count as usize);
    }

    /// Gives back the memory of a frame with data that was taken in, and says so now and then.
    pub(super) fn took(&mut self, frame: Frame, on_wait: OnWait<'_>) -> Result<(), SendError> {
        self.pool.give(frame);
        self.taken += 1;
        if self.taken < WINDOW / 2 {
            return Ok(());
        }
        self.tell_taken(on_wait)
    }

    /// Says how much was taken in, if there is something to say.
    pub(super) fn tell_taken(&mut self, on_wait: OnWait<'_>) -> Result<(), SendError> {
        if self.taken == 0 {
            return Ok(());
        }
        let header = Header {
            piece: std::mem::take(&mut self.taken) as u32,
            ..Header::of(Kind::Taken, 0)
        };
        self.send(&Frame::new(header, &[]), on_wait)
    }

    /// Sends what may be sent.
    pub(super) fn flush(&mut self, on_wait: OnWait<'_>) -> Result<(), SendError> {
        while self.unacknowledged < WINDOW
            && let Some(frame) = self.waiting.pop_front()
        {
            self.unacknowledged += 1;
            self.send(&frame, on_wait)?;
            self.pool.give(frame);
        }
        Ok(())
    }

    /// Sends one frame now.
    pub(super) fn send(&mut self, frame: &Frame, on_wait: OnWait<'_>) -> Result<(), SendError> {
        let payload = frame.payload();
        let (length, code) = self.sealer.seal(&[payload]);
        let mut parts = [
            IoSlice::new(&length),
            IoSlice::new(payload),
            IoSlice::new(&code),
        ];
        let mut parts = &mut parts[..];
        // Until all of it is written.
        let torn = std::mem::replace(&mut self.torn, true);
        if torn {
            return Err(SendError::Closed("a part of a frame was sent".to_owned()));
        }
        while !parts.is_empty() {
            match self.stream.write_vectored(parts) {
                Ok(0) => return Err(SendError::Closed("it takes nothing more".to_owned())),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    on_wait()?;
                }
                Err(error) => return Err(SendError::Closed(error.to_string())),
            }
        }
        self.torn = false;
        Ok(())
    }

    /// Tells the other end why nothing more comes: a rank has failed, or this one goes in order. Without
    /// waiting, since there may be nobody.
    pub(super) fn end_with(&mut self, last: &Last<'_>) {
        let frame = match last {
            Last::Left => Frame::new(Header::of(Kind::Left, 0), &[]),
            Last::Failed { rank, reason } => {
                let header = Header {
                    piece: *rank as u32,
                    ..Header::of(Kind::Failed, 0)
                };
                let len = reason.floor_char_boundary(REASON_BYTES);
                Frame::new(header, &reason.as_bytes()[..len])
            }
        };
        let at_once = &mut || Err(SendError::Closed(String::new()));
        let _ = self.send(&frame, at_once);
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl Drop for Link {
    /// The receiving thread has the connection too, and ends with this.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Why nothing more comes.
pub(super) enum Last<'a> {
    /// All calls are done.
    Left,
    /// A rank has failed.
    Failed {
        /// Which.
        rank: usize,
        /// Why.
        reason: &'a str,
    },
}

/// Called for every [`SLICE`] in which a socket had no room; an error ends the sending.
pub(super) type OnWait<'a> = &'a mut dyn FnMut() -> Result<(), SendError>;

/// Why a frame could not be sent.
pub(super) enum SendError {
    /// The connection is gone.
    Closed(String),
    /// Somebody gave up.
    GaveUp(crate::CommError),
}

/// The receiving end.
struct Receiving {
    stream: BufReader<TcpStream>,
    opener: Opener,
    pool: Pool,
}

impl Receiving {
    fn run(
        mut self,
        side: Side,
        peer: usize,
        arrivals: &SyncSender<Arrival>,
        end: &Mutex<Option<End>>,
    ) {
        let note = |what: End| {
            end.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(what);
        };
        loop {
            let frame = match self.frame() {
                Ok(frame) => frame,
                Err(why) => {
                    note((peer, why.clone()));
                    let _ = arrivals.send((side, Err(why)));
                    return;
                }
            };
            match frame.header.kind {
                Kind::Failed => {
                    let reason = String::from_utf8_lossy(frame.data()).into_owned();
                    note((frame.header.piece as usize, reason));
                }
                Kind::Left => note((peer, LEFT.to_owned())),
                _ => {}
            }
            if arrivals.send((side, Ok(frame))).is_err() {
                return;
            }
        }
    }

    fn frame(&mut self) -> Result<Frame, String> {
        let lost = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "its connection was closed".to_owned(),
            _ => format!("its connection broke: {error}"),
        };
        let mut length = [0; LENGTH_BYTES];
        self.stream.read_exact(&mut length).map_err(lost)?;
        let most = HEADER_BYTES + PIECE_BYTES;
        let len = self
            .opener
            .length(length, most)
            .map_err(|error| error.to_string())?;
        let mut payload = self.pool.take();
        payload.set_len(len);
        self.stream.read_exact(payload.bytes_mut()).map_err(lost)?;
        let mut code = [0; CODE_BYTES];
        self.stream.read_exact(&mut code).map_err(lost)?;
        self.opener
            .check(payload.bytes(), &code)
            .map_err(|error| error.to_string())?;
        Frame::from_payload(payload)
            .ok_or_else(|| "it sent what no rank of this version sends".to_owned())
    }
}
