//! The coordinator's thread: moves bytes between connections and the store, and tells it the time.
//!
//! One thread for all connections, none of which it ever waits for. Callers change the store themselves,
//! under its lock, and wake this thread to send what follows.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cordee_protocol::Secret;
use rustix::{
    buffer::spare_capacity,
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
};

use super::{
    Loss,
    clock::Clock,
    link::Link,
    message::FromAgent,
    store::{Connection, Output, Rules, Store},
};

/// Connections that have not proved yet that they belong to the job.
const MOST_GREETING: usize = 1024;
/// With so many there, the oldest makes room for the next once it is this old. Those of the job take less.
const GREETING_AGE: Duration = Duration::from_millis(250);
/// Connections that are accepted before those that are there are heard again.
const ACCEPTED_AT_ONCE: usize = 64;
const LONGEST_TICK: Duration = Duration::from_millis(100);

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const FIRST: Connection = 2;

/// What the server's thread and the coordinator's callers share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// After every change of the state.
    pub(super) changed: Condvar,
    wake: OwnedFd,
}

pub(super) struct State {
    pub(super) store: Store,
    pub(super) strangers: Strangers,
    pub(super) stopping: bool,
    /// Why the thread is no more, if it is not.
    pub(super) failed: Option<String>,
}

/// Connections that were refused before they said anything.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    count: usize,
    last: Option<String>,
}

impl Strangers {
    pub(super) fn told(&self) -> Option<String> {
        let last = self.last.as_ref()?;
        let what = if self.count == 1 {
            "1 connection was refused, from".to_owned()
        } else {
            format!("{} connections were refused, the last from", self.count)
        };
        Some(format!("{what} {last}"))
    }
}

impl Shared {
    pub(super) fn new(store: Store) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                store,
                strangers: Strangers::default(),
                stopping: false,
                failed: None,
            }),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread look at the store.
    pub(super) fn wake(&self) {
        // It fails where the thread has been woken 2^64 times and not looked.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

enum Input {
    Opened(Connection),
    Heard(Connection, FromAgent),
    Closed(Connection, Loss),
    Stranger(String),
}

pub(super) struct Server {
    epoll: OwnedFd,
    listener: TcpListener,
    accepting: bool,
    /// Before that it is of no use to accept: there are no descriptors left.
    accept_after: Duration,
    shared: Arc<Shared>,
    secret: Secret,
    rules: Rules,
    links: HashMap<Connection, Link>,
    /// Those of the links that have not proved anything; the oldest first.
    greeting: BTreeSet<Connection>,
    next: Connection,
    clock: Clock,
    tick: Duration,
    inputs: Vec<Input>,
    buffer: Vec<u8>,
}

impl Server {
    pub(super) fn new(
        listener: TcpListener,
        shared: Arc<Shared>,
        secret: Secret,
        rules: Rules,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch = |fd: &dyn AsFd, data| {
            let data = epoll::EventData::new_u64(data);
            epoll::add(&epoll, fd.as_fd(), data, epoll::EventFlags::IN)
        };
        watch(&listener, LISTENER)?;
        watch(&shared.wake, WAKE)?;
        let tick = (rules.beat() / 4).min(LONGEST_TICK);
        Ok(Self {
            epoll,
            listener,
            accepting: true,
            accept_after: Duration::ZERO,
            shared,
            secret,
            rules,
            links: HashMap::new(),
            greeting: BTreeSet::new(),
            next: FIRST,
            clock: Clock::new(tick),
            tick,
            inputs: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Serves until the coordinator stops.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let leaving = Leaving(&shared);
        let failed = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        if let Some(why) = failed {
            shared.lock().failed = Some(why);
        }
        drop(leaving);
    }

    /// Whether to go on.
    fn turn(&mut self) -> io::Result<bool> {
        let mut events = Vec::with_capacity(256);
        let wait = if self.inputs.is_empty() {
            self.tick
        } else {
            Duration::ZERO
        };
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = self.clock.look();
        for event in events {
            match event.data.u64() {
                LISTENER => self.accept(now),
                WAKE => {
                    let mut count = [0; 8];
                    let _ = rustix::io::read(&self.shared.wake, &mut count);
                }
                connection => self.serve(connection, now),
            }
        }
        self.close_overdue(now);
        let (outputs, stopping) = self.tell(now);
        for output in outputs {
            self.obey(&output, now);
        }
        self.watch_listener(now)?;
        Ok(!stopping)
    }

    /// Tells the store what has happened, and asks what is to be done.
    fn tell(&mut self, now: Duration) -> (Vec<Output>, bool) {
        let mut state = self.shared.lock();
        state.store.at(now);
        for input in self.inputs.drain(..) {
            match input {
                Input::Opened(connection) => {
                    let address = self.links.get(&connection).map(|link| link.peer.ip());
                    let address = address.map(|address| address.to_canonical());
                    state.store.opened(connection, address);
                }
                Input::Heard(connection, message) => state.store.heard(connection, message),
                Input::Closed(connection, why) => state.store.closed(connection, why),
                Input::Stranger(what) => {
                    state.strangers.count += 1;
                    state.strangers.last = Some(what);
                }
            }
        }
        state.store.tick();
        let outputs = state.store.take_outputs();
        let stopping = state.stopping;
        drop(state);
        self.shared.changed.notify_all();
        (outputs, stopping)
    }

    fn accept(&mut self, now: Duration) {
        for _ in 0..ACCEPTED_AT_ONCE {
            if self.greeting.len() >= MOST_GREETING && !self.drop_oldest_greeting(now) {
                break;
            }
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    let connection = self.next;
                    self.next += 1;
                    let data = epoll::EventData::new_u64(connection);
                    let watched = stream.set_nonblocking(true).is_ok()
                        && epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).is_ok();
                    // What cannot be watched is closed, and may try again.
                    if watched {
                        self.links.insert(connection, Link::new(stream, peer, now));
                        self.greeting.insert(connection);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_exhausted(&error) => {
                    self.accept_after = now + LONGEST_TICK;
                    self.drop_oldest_greeting(now);
                    break;
                }
                // The other end has given up already, or its network has.
                Err(_) => {}
            }
        }
    }

    fn drop_oldest_greeting(&mut self, now: Duration) -> bool {
        let Some(oldest) = self.greeting.first().copied() else {
            return false;
        };
        let link = &self.links[&oldest];
        let old = now.saturating_sub(link.opened) >= GREETING_AGE;
        if old {
            self.stranger(oldest, "it said nothing that proves anything");
        }
        old
    }

    /// Accepts no more while there is no room, without being told all the time that somebody waits.
    fn watch_listener(&mut self, now: Duration) -> io::Result<()> {
        let full = self.greeting.len() >= MOST_GREETING;
        let room = !full || {
            let oldest = self.greeting.first().and_then(|it| self.links.get(it));
            oldest.is_some_and(|link| now.saturating_sub(link.opened) >= GREETING_AGE)
        };
        let accepting = room && now >= self.accept_after;
        if accepting != self.accepting {
            let flags = if accepting {
                epoll::EventFlags::IN
            } else {
                epoll::EventFlags::empty()
            };
            let data = epoll::EventData::new_u64(LISTENER);
            epoll::modify(&self.epoll, &self.listener, data, flags)?;
            self.accepting = accepting;
        }
        Ok(())
    }

    /// Reads from and writes to a connection that is ready for either.
    fn serve(&mut self, connection: Connection, now: Duration) {
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        let received = link.receive(&self.secret, &mut self.buffer);
        if received.stands {
            self.greeting.remove(&connection);
            self.inputs.push(Input::Opened(connection));
        }
        let heard = received.messages.into_iter();
        self.inputs
            .extend(heard.map(|message| Input::Heard(connection, message)));
        match received.loss {
            Some(why) => self.lose(connection, why),
            None => self.flush(connection, now),
        }
    }

    fn obey(&mut self, output: &Output, now: Duration) {
        let (&Output::Send(connection, _) | &Output::Close(connection)) = output;
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        let queued = match output {
            Output::Send(_, message) => link.queue(message),
            Output::Close(_) => {
                link.closing = Some(now);
                Ok(())
            }
        };
        match queued {
            Ok(()) => self.flush(connection, now),
            Err(why) => self.lose(connection, why),
        }
    }

    fn flush(&mut self, connection: Connection, now: Duration) {
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        if let Err(why) = link.send(now) {
            return self.lose(connection, why);
        }
        if link.is_pending() != link.watched_for_room {
            let flags = if link.is_pending() {
                epoll::EventFlags::IN | epoll::EventFlags::OUT
            } else {
                epoll::EventFlags::IN
            };
            let data = epoll::EventData::new_u64(connection);
            if epoll::modify(&self.epoll, &link.stream, data, flags).is_err() {
                return self.lose(connection, Loss::Closed);
            }
            link.watched_for_room = link.is_pending();
        }
    }

    fn close_overdue(&mut self, now: Duration) {
        let Rules {
            node_timeout,
            greeting_timeout,
            ..
        } = self.rules;
        while let Some(oldest) = self.greeting.first().copied() {
            if now.saturating_sub(self.links[&oldest].opened) < greeting_timeout {
                break;
            }
            self.stranger(oldest, "it said nothing that proves anything");
        }
        let over = |link: &Link| {
            let closing = link.closing;
            let left = closing.is_some_and(|since| now.saturating_sub(since) >= greeting_timeout);
            left || link.stuck(now) >= node_timeout
        };
        let over: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| over(link))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in over {
            self.lose(connection, Loss::DoesNotRead);
        }
    }

    fn lose(&mut self, connection: Connection, why: Loss) {
        if self.greeting.contains(&connection) {
            let half_way = self.links.get(&connection).is_some_and(Link::is_half_way);
            match why {
                Loss::Closed if half_way => {
                    self.stranger(
                        connection,
                        "it left before its proof: it has another secret",
                    );
                }
                // Somebody looked whether anybody listens.
                Loss::Closed => {
                    self.greeting.remove(&connection);
                    self.links.remove(&connection);
                }
                Loss::Unreadable(what) => self.stranger(connection, &what),
                why => self.stranger(connection, &why.to_string()),
            }
        } else if self.links.remove(&connection).is_some() {
            self.inputs.push(Input::Closed(connection, why));
        }
    }

    fn stranger(&mut self, connection: Connection, what: &str) {
        self.greeting.remove(&connection);
        if let Some(link) = self.links.remove(&connection) {
            let peer = link.peer.ip().to_canonical();
            self.inputs.push(Input::Stranger(format!("{peer}: {what}")));
        }
    }
}

/// Says that the thread is no more, however it ended.
struct Leaving<'a>(&'a Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !state.stopping && state.failed.is_none() {
            state.failed = Some("its thread has ended".to_owned());
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// Whether there are no descriptors or no memory left for another connection.
fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| exhausted.contains(&errno))
}
