//! Where the processes of a job meet: an address, and a port that nobody has.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
};

use anyhow::Context;
use cordee_protocol::ExitCode;

use crate::failure::Failure;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// `None` for this machine's own.
    pub(super) address: Option<String>,
    /// `None` for one that is free.
    pub(super) port: Option<u16>,
}

/// Where an attempt meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: String,
    pub(super) port: u16,
    /// Whether the port was named and not chosen.
    named: bool,
}

impl Wish {
    /// Takes another port than this one, which is somebody else's.
    pub(super) fn leave(&mut self, port: u16) {
        self.port = self.port.filter(|own| *own != port);
    }

    /// The place of the next attempt. A free port is another each time: what is left of the last attempt
    /// may hold on to its own.
    pub(super) fn choose(&self) -> Result<Place, Failure> {
        let port = match self.port {
            Some(port) => port,
            None => free_port()
                .context("finding a free port for the processes to meet at")
                .map_err(|error| {
                    Failure::new(ExitCode::Environment, error)
                        .with_hint("name one by --master-port")
                })?,
        };
        Ok(Place {
            address: self
                .address
                .clone()
                .unwrap_or_else(|| "127.0.0.1".to_owned()),
            port,
            named: self.port.is_some(),
        })
    }
}

impl Place {
    /// One that another machine has told of.
    pub(super) fn told(address: String, port: u16) -> Self {
        Self {
            address,
            port,
            named: false,
        }
    }

    /// Whether somebody listens at a port that was named.
    pub(super) fn is_taken(&self) -> bool {
        let in_use = |result: io::Result<TcpListener>| {
            result.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        self.named && in_use(listen(self.port))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.address, self.port)
    }
}

/// A port that the system gave to us and that we gave back.
fn free_port() -> io::Result<u16> {
    Ok(listen(0)?.local_addr()?.port())
}

/// Listens on all addresses, of either kind where the machine has both.
fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_is_free_and_a_taken_one_is_found_out() {
        let wish = |port| Wish {
            address: None,
            port,
        };
        let place = wish(None).choose().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", place.port)).unwrap();
        assert!(!place.is_taken(), "it was chosen, so it is not asked for");
        let named = wish(Some(place.port)).choose().unwrap();
        assert!(named.is_taken());
        drop(listener);
        assert!(!named.is_taken());
        assert_eq!(named.to_string(), format!("127.0.0.1:{}", place.port));
    }
}
