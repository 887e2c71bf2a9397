//! A page over HTTP that says how a node fares: `/healthz`, `/metrics` and `/status`.
//!
//! One thread serves all clients, without ever waiting for one. Whatever clients do, they cost the
//! launcher no more than that thread, a few dozen descriptors and little memory: connections, the length
//! of a request and the time for each are bounded, and where there are too many, the one that has taken
//! longest goes. A connection carries one request, so that no client keeps a place.
//!
//! It must not know what the page says, nor hold up or end anything else: what goes wrong here is told
//! to the client alone. On a loopback address it refuses requests that browsers make under other names,
//! by which a web site could read it (DNS rebinding). It asks nobody who they are: who can reach the
//! address can read the page.

mod answer;
mod connection;
mod serve;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::event::{EventfdFlags, eventfd};

use crate::threads;
use answer::Desk;
use serve::Server;

/// How long a page that is dropped waits for its thread, which may be in the midst of [`PageContent`].
const PATIENCE: Duration = Duration::from_secs(1);

/// What a page says. It is asked by the page's thread, again for every request, and must answer from
/// memory: while it takes its time, other clients wait.
pub trait PageContent: Send + Sync {
    /// Whether the node does what it should.
    fn health(&self) -> Health;
    /// How the run stands.
    fn status(&self) -> serde_json::Value;
    /// The same as metrics, in a format that suits the `Accept` of a request, which may be empty.
    fn metrics(&self, accept: &str) -> MetricsText;
}

/// Whether a node does what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it does.
    pub ok: bool,
    /// Why not, in one line.
    pub text: String,
}

impl Health {
    /// All is well.
    pub fn good() -> Self {
        Self {
            ok: true,
            text: "ok".to_owned(),
        }
    }

    /// Something is the matter.
    pub fn bad(why: impl Into<String>) -> Self {
        Self {
            ok: false,
            text: why.into(),
        }
    }
}

/// Metrics as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsText {
    /// What HTTP calls their format.
    pub content_type: &'static str,
    /// All of them.
    pub text: String,
}

/// Why a page cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The address cannot be had.
    #[error("cannot serve a page at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no thread or descriptor for it.
    #[error(
        "cannot start the thread of the page at {address}: limits on open files or processes may be too low (`ulimit -n -u`)"
    )]
    Start {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl PageError {
    /// What to try next, where the system's answer tells.
    pub fn hint(&self) -> Option<&'static str> {
        let Self::Listen { source, .. } = self else {
            return None;
        };
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                Some("another program has that port: name another, or 0 for any that is free")
            }
            io::ErrorKind::AddrNotAvailable => {
                Some("this machine has no such address: see `ip address`, or name 127.0.0.1")
            }
            io::ErrorKind::PermissionDenied => {
                Some("ports below 1024 are for the system: name another, or 0 for any that is free")
            }
            _ => None,
        }
    }
}

/// A page that is being served, until it is dropped.
#[derive(Debug)]
pub struct HttpPage {
    address: SocketAddr,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    /// Says nothing, and ends with the thread.
    ended: Receiver<()>,
}

impl HttpPage {
    /// Serves a page at an address; port 0 is any that is free.
    pub fn serve(address: SocketAddr, content: Arc<dyn PageContent>) -> Result<Self, PageError> {
        let refused = |source| PageError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let scarce = |source| PageError::Start { address, source };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = Arc::new(eventfd(0, flags).map_err(|errno| scarce(errno.into()))?);
        let desk = Desk::new(content, address.ip().to_canonical().is_loopback());
        let server = Server::new(listener, Arc::clone(&stop), desk);
        let (alive, ended) = channel();
        let body = move || {
            let _alive = alive;
            server.run();
        };
        let thread = Some(threads::start("http page", body).map_err(scarce)?);
        Ok(Self {
            address,
            stop,
            thread,
            ended,
        })
    }

    /// Where it is served, with the port that it got.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpPage {
    /// Ends it at once, with all connections. A thread that is still in [`PageContent`] after a while
    /// is left to end by itself, since no launcher may hang for its page.
    fn drop(&mut self) {
        // An eventfd refuses only when it is full, and then its thread is awake already.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if self.ended.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout)
            && let Some(thread) = self.thread.take()
        {
            // It panics only where it has a bug, and then there is no page, and no more harm.
            let _ = thread.join();
        }
    }
}
