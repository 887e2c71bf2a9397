//! The loop of the page's thread: who is ready, who came, whose time is up.

use std::{
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{answer::Desk, connection::Connection};

/// Connections at a time. Each is a descriptor of the launcher, which needs its own for ranks.
const CONNECTIONS: usize = 32;
/// Connections taken before those that are there get another turn.
const ARRIVALS: usize = 8;
/// How long nobody is let in after the system refused a connection, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// All that the thread has.
#[derive(Debug)]
pub(super) struct Server {
    listener: TcpListener,
    stop: Arc<OwnedFd>,
    desk: Desk,
    connections: Vec<Connection>,
    closed_until: Option<Instant>,
}

impl Server {
    pub(super) fn new(listener: TcpListener, stop: Arc<OwnedFd>, desk: Desk) -> Self {
        Self {
            listener,
            stop,
            desk,
            connections: Vec::with_capacity(CONNECTIONS),
            closed_until: None,
        }
    }

    /// Serves until it is asked to stop.
    pub(super) fn run(mut self) {
        while let Some(ready) = self.wait() {
            let now = Instant::now();
            let mut ready = ready.into_iter();
            let has_arrivals = ready.next().unwrap_or(false);
            let desk = &self.desk;
            self.connections.retain_mut(|connection| {
                let is_ready = ready.next().unwrap_or(false);
                (!is_ready || connection.advance(desk, now)) && now < connection.deadline()
            });
            if self.closed_until.is_some_and(|until| until <= now) {
                self.closed_until = None;
            }
            if has_arrivals && self.closed_until.is_none() {
                self.let_in(now);
            }
        }
    }

    /// Waits for something to do. Whether the listener, and then each connection, is ready; `None` once
    /// the page is to stop.
    fn wait(&self) -> Option<Vec<bool>> {
        let deadlines = self.connections.iter().map(Connection::deadline);
        let timeout = deadlines.chain(self.closed_until).min().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left).expect("deadlines are seconds away")
        });
        let arrivals = match self.closed_until {
            None => PollFlags::IN,
            Some(_) => PollFlags::empty(),
        };
        let mut polled = Vec::with_capacity(2 + self.connections.len());
        polled.push(PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN));
        polled.push(PollFd::from_borrowed_fd(self.listener.as_fd(), arrivals));
        polled.extend(self.connections.iter().map(Connection::polled));
        match poll(&mut polled, timeout.as_ref()) {
            // A signal was handled: nobody is ready, and time has passed.
            Err(Errno::INTR) => return Some(Vec::new()),
            // Out of memory for the call, at worst. Without the pause this would be a busy loop.
            Err(_) => std::thread::sleep(PAUSE),
            Ok(_) => {}
        }
        let mut ready = polled.iter().map(|it| !it.revents().is_empty());
        let is_over = ready.next().unwrap_or(false);
        (!is_over).then(|| ready.collect())
    }

    fn let_in(&mut self, now: Instant) {
        for _ in 0..ARRIVALS {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let Ok(mut connection) = Connection::new(stream, now) else {
                        continue;
                    };
                    // Most requests are there already.
                    if connection.advance(&self.desk, now) {
                        if self.connections.len() == CONNECTIONS {
                            self.close_one();
                        }
                        self.connections.push(connection);
                    }
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => return,
                    // The client thought better of it.
                    Some(Errno::CONNABORTED | Errno::INTR) => {}
                    // Idle clients may have taken the last descriptors.
                    Some(Errno::MFILE | Errno::NFILE) if self.close_one() => {}
                    _ => {
                        self.closed_until = Some(now + PAUSE);
                        return;
                    }
                },
            }
        }
    }

    /// Closes the connection whose time is up first; `false` where there is none.
    fn close_one(&mut self) -> bool {
        let deadlines = self.connections.iter().map(Connection::deadline);
        let first = deadlines.enumerate().min_by_key(|(_, deadline)| *deadline);
        first.is_some_and(|(index, _)| {
            self.connections.swap_remove(index);
            true
        })
    }
}
