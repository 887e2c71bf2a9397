//! How neighbouring ranks find each other: the upper one dials, and both prove that they know the job's
//! secret. Whoever does not is sent away, and the waiting goes on.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::mpsc::{Sender, SyncSender, channel},
    thread,
    time::{Duration, Instant},
};

use cordee_protocol::{
    Answering, CODE_BYTES, Dialing, HELLO_BYTES, LENGTH_BYTES, Opener, PROOF_BYTES, Sealer, Secret,
    WELCOME_BYTES,
};

use super::{
    Machines, Neighbours, Side,
    frame::{Frame, HEADER_BYTES, Header, Kind, Pool},
    link::{Arrival, Link},
    rail::Turn,
};
use crate::{CommError, Result};

/// Where what comes goes to, and what it is kept in.
pub(super) type Ends = (SyncSender<Arrival>, Pool);

/// How long a greeting may take, all of it.
const GREETING: Duration = Duration::from_secs(5);
/// Between two attempts to dial.
const PAUSE: Duration = Duration::from_millis(20);
/// Most that are greeted at once: of more the oldest are strangers, who take their time.
const GREETED: usize = 32;

/// A connection whose other end has proved itself.
type Proved = (TcpStream, Sealer, Opener);

/// Who is at either end, in numbers that both must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Introduction {
    world_size: u32,
    rank: u32,
    expected: u32,
}

impl Introduction {
    fn frame(self) -> Frame {
        let words = [self.world_size, self.rank, self.expected];
        let header = Header::of(Kind::Introduction, 0);
        Frame::new(header, &words.map(u32::to_le_bytes).concat())
    }

    fn of(frame: &Frame) -> Option<Self> {
        let [a, b, c] = frame.data().as_chunks::<4>().0 else {
            return None;
        };
        let [world_size, rank, expected] = [a, b, c].map(|word| u32::from_le_bytes(*word));
        (frame.header.kind == Kind::Introduction).then_some(Self {
            world_size,
            rank,
            expected,
        })
    }

    /// What the other end has to say.
    fn answer(self) -> Self {
        Self {
            world_size: self.world_size,
            rank: self.expected,
            expected: self.rank,
        }
    }
}

/// Connects a rank to the machine before its own: dials until it is answered.
pub(super) fn dial(
    machines: &Machines,
    neighbours: &Neighbours,
    turn: &mut Turn<'_>,
    ends: &Ends,
) -> Result<Link> {
    let (introduction, peer) = introduction(machines, turn.rank, Side::Below);
    let mut last = "no address of it is known".to_owned();
    loop {
        for address in &neighbours.below {
            let started = Instant::now();
            match call_at(address, &neighbours.secret, introduction) {
                Ok((stream, sealer, opener)) => {
                    return start(Side::Below, peer, (stream, sealer, opener), ends)
                        .map_err(|error| turn.peer_failed(peer, error.to_string()));
                }
                Err(error) => last = format!("{address}: {error}"),
            }
            pass(turn, started.elapsed(), peer, &last)?;
        }
        thread::sleep(PAUSE);
        pass(turn, PAUSE, peer, &last)?;
    }
}

/// Connects a rank to the machine after its own: answers until the right one has dialled.
pub(super) fn answer(
    machines: &Machines,
    neighbours: &Neighbours,
    turn: &mut Turn<'_>,
    ends: &Ends,
) -> Result<Link> {
    let (introduction, peer) = introduction(machines, turn.rank, Side::Above);
    let failed = |turn: &Turn<'_>, error: io::Error| turn.peer_failed(turn.rank, error.to_string());
    let Some(listener) = &neighbours.listener else {
        return Err(turn.peer_failed(turn.rank, "it has no port to be reached at".to_owned()));
    };
    listener
        .set_nonblocking(true)
        .map_err(|error| failed(turn, error))?;
    let (proved, proofs) = channel();
    let mut greeted = VecDeque::new();
    loop {
        let started = Instant::now();
        if let Ok((stream, sealer, opener)) = proofs.try_recv() {
            return start(Side::Above, peer, (stream, sealer, opener), ends)
                .map_err(|error| failed(turn, error));
        }
        if let Ok((stream, _)) = listener.accept() {
            greet(stream, neighbours, introduction, (&mut greeted, &proved));
        } else {
            // Nobody there, or somebody who gave up before it was answered.
            thread::sleep(PAUSE / 10);
        }
        pass(turn, started.elapsed(), peer, "it has not connected")?;
    }
}

/// Greets who dialled, on a thread of its own: others may be waiting.
fn greet(
    stream: TcpStream,
    neighbours: &Neighbours,
    introduction: Introduction,
    (greeted, proved): (&mut VecDeque<TcpStream>, &Sender<Proved>),
) {
    if greeted.len() == GREETED
        && let Some(oldest) = greeted.pop_front()
    {
        // Nothing happens where its greeting is over.
        let _ = oldest.shutdown(Shutdown::Both);
    }
    greeted.extend(stream.try_clone());
    let (secret, proved) = (neighbours.secret.clone(), proved.clone());
    let work = move || {
        match answer_to(&stream, &secret, introduction) {
            Ok((sealer, opener)) => {
                let _ = proved.send((stream, sealer, opener));
            }
            // The connection is also in the list of those who are greeted, which keeps it open.
            Err(_) => {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    };
    // Without a thread this one is sent away and dials again.
    let _ = thread::Builder::new()
        .name("greeting".to_owned())
        .spawn(work);
}

fn introduction(machines: &Machines, rank: usize, side: Side) -> (Introduction, usize) {
    let local = rank - machines.ranks_of(machines.own()).start;
    let neighbour = match side {
        Side::Below => machines.own() - 1,
        Side::Above => machines.own() + 1,
    };
    let peer = machines.ranks_of(neighbour).start + local;
    let introduction = Introduction {
        world_size: machines.world_size() as u32,
        rank: rank as u32,
        expected: peer as u32,
    };
    (introduction, peer)
}

fn start(
    side: Side,
    peer: usize,
    (stream, sealer, opener): Proved,
    ends: &Ends,
) -> io::Result<Link> {
    Link::start(side, peer, stream, (sealer, opener), ends.clone())
}

/// Takes note of time that passed before a neighbour was there.
fn pass(turn: &mut Turn<'_>, time: Duration, peer: usize, last: &str) -> Result<()> {
    turn.waited(time, &[peer]).map_err(|error| match error {
        CommError::Timeout { waited, .. } => CommError::Unreachable {
            rank: turn.rank,
            peer,
            waited,
            why: last.to_owned(),
        },
        error => error,
    })
}

fn call_at(
    address: &SocketAddr,
    secret: &Secret,
    introduction: Introduction,
) -> io::Result<Proved> {
    let stream = TcpStream::connect_timeout(address, GREETING)?;
    let (sealer, opener) = call(&stream, secret, introduction)?;
    Ok((stream, sealer, opener))
}

fn call(
    stream: &TcpStream,
    secret: &Secret,
    introduction: Introduction,
) -> io::Result<(Sealer, Opener)> {
    let mut stream = Hasty::new(stream);
    let dialing = Dialing::new(secret)?;
    stream.write_all(&dialing.hello())?;
    let mut welcome = [0; WELCOME_BYTES];
    stream.read_exact(&mut welcome)?;
    let (proof, mut sealer, mut opener) = dialing.finish(&welcome).map_err(io::Error::other)?;
    stream.write_all(&proof)?;
    introduce(&mut stream, (&mut sealer, &mut opener), introduction)?;
    Ok((sealer, opener))
}

fn answer_to(
    stream: &TcpStream,
    secret: &Secret,
    introduction: Introduction,
) -> io::Result<(Sealer, Opener)> {
    stream.set_nonblocking(false)?;
    let mut stream = Hasty::new(stream);
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello)?;
    let answering = Answering::new(secret, &hello)?.map_err(io::Error::other)?;
    stream.write_all(&answering.welcome())?;
    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof)?;
    let (mut sealer, mut opener) = answering.finish(&proof).map_err(io::Error::other)?;
    introduce(&mut stream, (&mut sealer, &mut opener), introduction)?;
    Ok((sealer, opener))
}

/// Says who this is, and hears whether the other end is who it should be.
fn introduce(
    stream: &mut Hasty<'_>,
    (sealer, opener): (&mut Sealer, &mut Opener),
    introduction: Introduction,
) -> io::Result<()> {
    stream.write_all(&sealer.frame(introduction.frame().payload()))?;
    let expected = introduction.answer().frame();
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length)?;
    let most = expected.payload().len();
    let len = opener.length(length, most).map_err(io::Error::other)?;
    let mut payload = super::frame::Aligned::new(len);
    stream.read_exact(payload.bytes_mut())?;
    let mut code = [0; CODE_BYTES];
    stream.read_exact(&mut code)?;
    opener
        .check(payload.bytes(), &code)
        .map_err(io::Error::other)?;
    let found = (len >= HEADER_BYTES)
        .then(|| Frame::from_payload(payload))
        .flatten();
    let found = found.as_ref().and_then(Introduction::of);
    if found != Some(introduction.answer()) {
        return Err(io::Error::other(format!(
            "another rank than {} of {} answers",
            introduction.expected, introduction.world_size
        )));
    }
    Ok(())
}

/// A connection that is used for [`GREETING`] at the longest, however little comes at a time.
struct Hasty<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> Hasty<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self {
            stream,
            until: Instant::now() + GREETING,
        }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Hasty<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(bytes)
    }
}

impl Write for Hasty<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
