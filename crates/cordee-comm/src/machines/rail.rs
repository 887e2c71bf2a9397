//! A rank's connections: to the rank of the same number on the machine before its own and on the one
//! after. Together they make a chain of machines for every such number, a rail.
//!
//! Every frame with data is counted by its sender until the other end has taken it in, and what would
//! be too many waits where it was made. Frames move along the chain in one direction or the other, and
//! turn only at its end: so whatever waits, waits for something nearer to the end, and no two ranks wait
//! for each other.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    time::{Duration, Instant},
};

use super::{
    Side,
    frame::{Aligned, Frame, Header, Kind, Pool},
    link::{Arrival, LEFT, Last, Link, OnWait, SLICE, SendError},
};
use crate::{Call, CommError, Result, call::CALL_WORDS, shared_memory::Meeting};

/// What a rank is about while it waits for other machines, and how long it may.
pub(super) struct Turn<'a> {
    pub(super) rank: usize,
    pub(super) meeting: &'a Meeting,
    pub(super) call: &'a Call,
    /// Waited since something last came.
    pub(super) waited: Duration,
}

impl<'a> Turn<'a> {
    pub(super) fn new(rank: usize, meeting: &'a Meeting, call: &'a Call) -> Self {
        Self {
            rank,
            meeting,
            call,
            waited: Duration::ZERO,
        }
    }

    /// Takes note of a wait: an error, if a rank of this machine has failed meanwhile or it was the last.
    pub(super) fn waited(&mut self, time: Duration, missing: &[usize]) -> Result<()> {
        self.waited_with(time, missing, Duration::ZERO)
    }

    /// The same, with so much more patience.
    fn waited_with(&mut self, time: Duration, missing: &[usize], grace: Duration) -> Result<()> {
        self.waited += time;
        self.meeting.check(self.call)?;
        if self.waited < self.meeting.timeout() + grace {
            return Ok(());
        }
        Err(CommError::Timeout {
            rank: self.rank,
            call: Box::new(self.call.clone()),
            waited: self.waited,
            missing: missing.to_vec(),
            records: self.meeting.records(),
        })
    }

    pub(super) fn peer_failed(&self, peer: usize, reason: String) -> CommError {
        CommError::PeerFailed {
            rank: self.rank,
            call: Box::new(self.call.clone()),
            peer,
            reason,
        }
    }
}

/// The connections of a rank to its neighbours on other machines.
pub(super) struct Rail {
    pub(super) below: Option<Link>,
    pub(super) above: Option<Link>,
    arrivals: Receiver<Arrival>,
    pool: Pool,
    /// How often ranks along the rail have exchanged something, this time included.
    exchange: u64,
}

impl Rail {
    /// Without connections.
    pub(super) fn new(arrivals: Receiver<Arrival>, pool: Pool) -> Self {
        Self {
            below: None,
            above: None,
            arrivals,
            pool,
            exchange: 0,
        }
    }

    /// The beginning of a frame of this exchange.
    pub(super) fn header(&self, kind: Kind) -> Header {
        Header::of(kind, self.exchange)
    }

    /// Memory for a frame to come.
    pub(super) fn memory(&self) -> Aligned {
        self.pool.take()
    }

    /// The connection to one side; there is one, unless this machine is the last on that side.
    fn link(&mut self, side: Side) -> Option<&mut Link> {
        match side {
            Side::Below => self.below.as_mut(),
            Side::Above => self.above.as_mut(),
        }
    }

    fn links(&mut self) -> impl Iterator<Item = &mut Link> {
        [self.below.as_mut(), self.above.as_mut()]
            .into_iter()
            .flatten()
    }

    /// Begins an exchange: says which call it is for.
    pub(super) fn begin(&mut self, turn: &mut Turn<'_>) -> Result<()> {
        self.exchange += 1;
        let words = turn.call.to_words().map(u64::to_le_bytes);
        let frame = Frame::new(self.header(Kind::Call), &words.concat());
        for side in Side::BOTH {
            if let Some(link) = self.link(side) {
                link.agreed = false;
                self.send(side, turn, |link, on_wait| link.send(&frame, on_wait))?;
            }
        }
        Ok(())
    }

    /// Whether another frame with data may go to this side; so it is where there is nobody.
    pub(super) fn has_room(&mut self, side: Side) -> bool {
        self.link(side).is_none_or(|link| link.has_room())
    }

    /// Gives a frame with data to a side, to be sent when it may; to nobody where there is nobody.
    pub(super) fn push(&mut self, side: Side, turn: &mut Turn<'_>, frame: Frame) -> Result<()> {
        match self.link(side) {
            Some(link) => link.push(frame),
            None => self.pool.give(frame),
        }
        self.send(side, turn, Link::flush)
    }

    /// The next frame of this exchange from a side, if one has come. Who takes it gives it back to
    /// [`Self::took`].
    pub(super) fn take(&mut self, side: Side, turn: &Turn<'_>) -> Result<Option<Frame>> {
        let exchange = self.exchange;
        let Some(link) = self.link(side) else {
            return Ok(None);
        };
        while let Some(frame) = link
            .arrived
            .pop_front_if(|it| it.header.exchange == exchange)
        {
            if frame.header.kind == Kind::Call {
                compare(turn, link.peer, frame.data())?;
                link.agreed = true;
            } else if link.agreed {
                return Ok(Some(frame));
            } else {
                return Err(turn.peer_failed(link.peer, OUT_OF_ORDER.to_owned()));
            }
        }
        if let Some(frame) = link.arrived.front()
            && frame.header.exchange < exchange
        {
            return Err(turn.peer_failed(link.peer, OUT_OF_ORDER.to_owned()));
        }
        Ok(None)
    }

    /// Done with a frame from a side.
    pub(super) fn took(&mut self, side: Side, turn: &mut Turn<'_>, frame: Frame) -> Result<()> {
        self.send(side, turn, |link, on_wait| link.took(frame, on_wait))
    }

    /// What a peer sent that it should not have.
    pub(super) fn out_of_order(&mut self, side: Side, turn: &Turn<'_>) -> CommError {
        let peer = self.link(side).map_or(turn.rank, |link| link.peer);
        turn.peer_failed(peer, OUT_OF_ORDER.to_owned())
    }

    /// Sends what may be sent, and waits until something comes.
    pub(super) fn wait(&mut self, turn: &mut Turn<'_>) -> Result<()> {
        for side in Side::BOTH {
            self.send(side, turn, Link::flush)?;
            self.send(side, turn, Link::tell_taken)?;
        }
        // Who went in order has done this call too, if it ever began it.
        if let Some(gone) = self.links().find(|link| link.left && !link.agreed) {
            return Err(turn.peer_failed(gone.peer, LEFT.to_owned()));
        }
        loop {
            match self.arrivals.recv_timeout(SLICE) {
                Ok(arrival) => {
                    turn.waited = Duration::ZERO;
                    self.sort(turn, arrival)?;
                    return self.sort_all(turn);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let (missing, grace) = self.missing();
                    turn.waited_with(SLICE, &missing, grace)?;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(turn.peer_failed(turn.rank, "nobody receives".to_owned()));
                }
            }
        }
    }

    /// Waits until all is sent and both neighbours have said that they make the same call; they are told
    /// what was taken in, so that they may go.
    pub(super) fn finish(&mut self, turn: &mut Turn<'_>) -> Result<()> {
        loop {
            for side in Side::BOTH {
                self.send(side, turn, Link::flush)?;
                if self.take(side, turn)?.is_some() {
                    return Err(self.out_of_order(side, turn));
                }
            }
            if self.links().all(|link| link.agreed && link.is_flushed()) {
                break;
            }
            self.wait(turn)?;
        }
        for side in Side::BOTH {
            self.send(side, turn, Link::tell_taken)?;
        }
        Ok(())
    }

    /// Waits until the neighbours have taken in what was sent: what is in a connection when it is closed
    /// may be lost.
    pub(super) fn settle(&mut self, until: Instant) {
        while self.links().any(|link| link.is_owed()) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((side, arrival)) = self.arrivals.recv_timeout(left) else {
                return;
            };
            let Some(link) = self.link(side) else {
                return;
            };
            match arrival {
                Ok(frame) if frame.header.kind == Kind::Taken => {
                    link.acknowledged(frame.header.piece);
                }
                Ok(frame) if frame.header.kind == Kind::Failed => return,
                Ok(_) => {}
                Err(_) => link.owe_nothing(),
            }
        }
    }

    /// Tells both neighbours why nothing more comes.
    pub(super) fn end_with(&mut self, last: &Last<'_>) {
        for link in self.links() {
            link.end_with(last);
        }
    }

    /// An error once a connection is of no more use.
    pub(super) fn check(&self, rank: usize, call: &Call) -> Result<()> {
        let ends = [&self.below, &self.above];
        let end = ends.into_iter().flatten().find_map(Link::end);
        end.map_or(Ok(()), |(peer, reason)| {
            Err(CommError::PeerFailed {
                rank,
                call: Box::new(call.clone()),
                peer,
                reason,
            })
        })
    }

    /// The neighbours that have not begun this call; where both have, those first that do not take in what
    /// they were sent. Then it may be another behind them that all wait for, and its neighbours are to speak
    /// first: they get some time to.
    fn missing(&mut self) -> (Vec<usize>, Duration) {
        let behind = self.links().filter(|link| !link.agreed);
        let behind: Vec<_> = behind.map(|link| link.peer).collect();
        if !behind.is_empty() {
            return (behind, Duration::ZERO);
        }
        let mut links: Vec<_> = self
            .links()
            .map(|link| (!link.is_owed(), link.peer))
            .collect();
        links.sort_by_key(|(idle, _)| *idle);
        (links.into_iter().map(|(_, peer)| peer).collect(), GRACE)
    }

    fn sort_all(&mut self, turn: &mut Turn<'_>) -> Result<()> {
        loop {
            match self.arrivals.try_recv() {
                Ok(arrival) => self.sort(turn, arrival)?,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Puts what has come where it belongs.
    fn sort(&mut self, turn: &Turn<'_>, (side, arrival): Arrival) -> Result<()> {
        let Some(link) = self.link(side) else {
            return Ok(());
        };
        match arrival {
            Ok(frame) => match frame.header.kind {
                Kind::Taken => link.acknowledged(frame.header.piece),
                Kind::Left => link.left = true,
                Kind::Failed => {
                    let reason = String::from_utf8_lossy(frame.data()).into_owned();
                    return Err(turn.peer_failed(frame.header.piece as usize, reason));
                }
                _ => link.arrived.push_back(frame),
            },
            Err(_) if link.left => {}
            Err(why) => return Err(turn.peer_failed(link.peer, why)),
        }
        Ok(())
    }

    /// Sends to a side, waiting for room no longer than may be waited.
    fn send(
        &mut self,
        side: Side,
        turn: &mut Turn<'_>,
        work: impl FnOnce(&mut Link, OnWait<'_>) -> std::result::Result<(), SendError>,
    ) -> Result<()> {
        let Some(link) = self.link(side) else {
            return Ok(());
        };
        let peer = link.peer;
        let on_wait = &mut || turn.waited(SLICE, &[peer]).map_err(SendError::GaveUp);
        match work(link, on_wait) {
            Ok(()) => Ok(()),
            Err(SendError::GaveUp(error)) => Err(error),
            Err(SendError::Closed(why)) => Err(self.closed(side, turn, why)),
        }
    }

    /// A connection that takes nothing more: what the peer said last tells more than that.
    fn closed(&mut self, side: Side, turn: &Turn<'_>, why: String) -> CommError {
        let Some(link) = self.link(side) else {
            return turn.peer_failed(turn.rank, why);
        };
        let (peer, until) = (link.peer, Instant::now() + LAST_WORDS);
        loop {
            if let Some((rank, reason)) = self.link(side).and_then(|link| link.end()) {
                return turn.peer_failed(rank, reason);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.arrivals.recv_timeout(left) {
                Ok(arrival) => {
                    if let Err(error) = self.sort(turn, arrival) {
                        return error;
                    }
                }
                Err(_) => return turn.peer_failed(peer, format!("its connection broke: {why}")),
            }
        }
    }
}

/// How much longer those wait who do not know whom for.
const GRACE: Duration = Duration::from_secs(1);

const OUT_OF_ORDER: &str = "what it sent does not belong to the call that ranks are in";

/// How long to wait for what a peer said before its connection broke.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// That a neighbour makes the same call.
fn compare(turn: &Turn<'_>, peer: usize, data: &[u8]) -> Result<()> {
    let mut words = [0; CALL_WORDS];
    let bytes = data.chunks_exact(size_of::<u64>());
    if bytes.len() != words.len() {
        return Err(turn.peer_failed(peer, OUT_OF_ORDER.to_owned()));
    }
    for (word, bytes) in words.iter_mut().zip(bytes) {
        *word = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    }
    if words == turn.call.to_words() {
        return Ok(());
    }
    let theirs =
        Call::from_words(words).map_or("an unknown call".to_owned(), |call| call.to_string());
    let mut both = [(turn.rank, turn.call.to_string()), (peer, theirs)];
    both.sort();
    let [(first, first_call), (second, second_call)] = both;
    Err(CommError::Mismatch {
        rank: turn.rank,
        first,
        first_call,
        second,
        second_call,
    })
}
