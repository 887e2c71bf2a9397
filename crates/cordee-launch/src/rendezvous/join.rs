//! How an agent finds the coordinator and joins, within its deadline.
//!
//! Nothing that goes wrong on the way is final until the deadline: the coordinator may start later than
//! this node, the meeting file may be of an earlier start, a name may not be known yet. Only what the
//! coordinator itself says is.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::Duration,
};

use cordee_protocol::Secret;
use serde_json::Value;

use super::{
    Fingerprint, MeetingFile, RendezvousError, Tried,
    clock::Deadline,
    dial::{Line, Over, dial},
    message::{FromAgent, Refusal, ToAgent},
};
use crate::threads;

/// How long one address may take to connect and greet.
const PER_ADDRESS: Duration = Duration::from_secs(1);
/// How long a name may take to become addresses; the system's own patience is longer, and cannot be cut.
const PER_NAME: Duration = Duration::from_secs(5);
/// Pauses between rounds through all addresses.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// How an agent joins.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// Which job.
    pub job: String,
    /// This node's index, larger than 0.
    pub node: usize,
    /// Its host.
    pub host: String,
    /// Workers that it would start.
    pub workers: usize,
    /// What the coordinator is to know of it.
    pub payload: Value,
    /// What has to be alike on all nodes.
    pub fingerprint: Fingerprint,
    /// Where the coordinator is found.
    pub meet: Meet,
    /// How long it is tried.
    pub join_timeout: Duration,
}

/// Where the coordinator is found.
#[derive(Clone, Debug)]
pub enum Meet {
    /// It leaves its addresses in this file.
    File(PathBuf),
    /// It is known beforehand.
    At {
        /// `host:port`.
        address: String,
        /// What the processes of the job know and nobody else.
        secret: Secret,
    },
}

/// An agent that has joined.
pub(super) struct Joined {
    pub(super) line: Line,
    pub(super) coordinator: SocketAddr,
    pub(super) local: IpAddr,
    pub(super) secret: Secret,
    pub(super) node_timeout: Duration,
}

/// What came of one round.
struct Round<'a> {
    options: &'a JoinOptions,
    deadline: &'a mut Deadline,
    tried: Vec<Tried>,
}

pub(super) fn join(options: &JoinOptions) -> Result<Joined, RendezvousError> {
    let mut deadline = Deadline::new(options.join_timeout);
    let mut pause = PAUSES[0];
    // In the last round that was not cut short.
    let mut tried = Vec::new();
    while deadline.left().is_some() {
        let mut round = Round {
            options,
            deadline: &mut deadline,
            tried: Vec::new(),
        };
        if let Some(joined) = round.run()? {
            return Ok(joined);
        }
        let last = round.tried;
        let Some(left) = deadline.left() else {
            // Cut short: what was known of an address says more than that there was no time for it.
            let known = |new: &Tried| tried.iter().any(|old: &Tried| old.address == new.address);
            let new: Vec<_> = last.into_iter().filter(|it| !known(it)).collect();
            tried.extend(new);
            break;
        };
        tried = last;
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSES[1]);
    }
    Err(RendezvousError::NotFound {
        node: options.node,
        waited: options.join_timeout,
        tried,
    })
}

impl Round<'_> {
    fn run(&mut self) -> Result<Option<Joined>, RendezvousError> {
        let (addresses, secret) = match &self.options.meet {
            Meet::At { address, secret } => (vec![address.clone()], secret.clone()),
            Meet::File(path) => {
                let name = path.display().to_string();
                match MeetingFile::read(path)? {
                    None => {
                        self.note(name, "not there, or not written yet".to_owned());
                        return Ok(None);
                    }
                    Some(file) if file.job != self.options.job => {
                        self.note(name, format!("it is of another job, {}", file.job));
                        return Ok(None);
                    }
                    Some(file) => (file.addresses, file.secret),
                }
            }
        };
        for address in addresses {
            let resolved = match resolve(&address, self.deadline) {
                Ok(resolved) => resolved,
                Err(answer) => {
                    self.note(address, answer);
                    continue;
                }
            };
            for place in resolved {
                let Some(left) = self.deadline.left() else {
                    return Ok(None);
                };
                let answer = match dial(place, &secret, left.min(PER_ADDRESS)) {
                    Ok(line) => match self.ask((line, &secret), place)? {
                        Ok(joined) => return Ok(Some(joined)),
                        Err(answer) => answer,
                    },
                    Err(answer) => answer,
                };
                let name = if address.parse() == Ok(place) {
                    address.clone()
                } else {
                    format!("{address} ({place})")
                };
                self.note(name, answer);
            }
        }
        Ok(None)
    }

    fn note(&mut self, address: String, answer: String) {
        self.tried.push(Tried { address, answer });
    }

    /// Asks to join. What the coordinator answers is final; that it does not is another try's business.
    fn ask(
        &mut self,
        (mut line, secret): (Line, &Secret),
        coordinator: SocketAddr,
    ) -> Result<Result<Joined, String>, RendezvousError> {
        let options = self.options;
        let request = FromAgent::Join {
            node: options.node,
            host: options.host.clone(),
            workers: options.workers,
            payload: options.payload.clone(),
            fingerprint: options.fingerprint.clone(),
        };
        match line.sending.send(&request) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Ok(Err(error.to_string())),
            Err(len) => {
                return Err(RendezvousError::TooLong {
                    what: "what is told of this node",
                    len,
                    most: super::message::MOST_BYTES,
                });
            }
        }
        let answer = match self.answer(&mut line) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(Err("it did not answer in time".to_owned())),
            Err(Over::Closed) => return Ok(Err("it closed the connection".to_owned())),
            Err(Over::Unreadable(what)) => return Ok(Err(what)),
        };
        match answer {
            ToAgent::Joined { node_timeout } => {
                let local = line.receiving.stream.local_addr();
                let Ok(local) = local.map(|it| it.ip().to_canonical()) else {
                    return Ok(Err("it closed the connection".to_owned()));
                };
                Ok(Ok(Joined {
                    line,
                    coordinator,
                    local,
                    secret: secret.clone(),
                    node_timeout,
                }))
            }
            ToAgent::Refused(Refusal::Mismatch(mismatch)) => {
                Err(RendezvousError::Mismatch(mismatch))
            }
            ToAgent::Refused(Refusal::Taken { host, address }) => {
                let node = options.node;
                let holder = match address {
                    Some(address) => format!("{host} ({address})"),
                    None => format!("{host}, the coordinator"),
                };
                Err(RendezvousError::Taken { node, holder })
            }
            ToAgent::Finish { code, text } => Err(RendezvousError::Finished { code, text }),
            _ => Ok(Err("its answer makes no sense".to_owned())),
        }
    }

    fn answer(&mut self, line: &mut Line) -> Result<Option<ToAgent>, Over> {
        loop {
            if let Some(message) = line.receiving.take()? {
                return Ok(Some(message));
            }
            let Some(left) = self.deadline.left() else {
                return Ok(None);
            };
            let slice = left.clamp(Duration::from_millis(1), PER_ADDRESS);
            let set = line.receiving.stream.set_read_timeout(Some(slice));
            set.map_err(|_| Over::Closed)?;
            line.receiving.wait()?;
        }
    }
}

/// The addresses that `host:port` stands for.
fn resolve(address: &str, deadline: &mut Deadline) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (sender, receiver) = mpsc::channel();
    let name = address.to_owned();
    let asked = threads::start("resolve", move || {
        let found = name.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let _ = sender.send(found);
    });
    asked.map_err(|error| error.to_string())?;
    let patience = deadline.left().unwrap_or_default().min(PER_NAME);
    match receiver.recv_timeout(patience) {
        Ok(Ok(found)) if found.is_empty() => Err("the name has no address".to_owned()),
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err("the name could not be looked up in time".to_owned()),
    }
}
