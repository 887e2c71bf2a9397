//! Why nodes did not come together.

use std::{fmt, io, path::PathBuf, time::Duration};

use cordee_protocol::ExitCode;

use super::{Mismatch, fingerprint::named};

/// What went wrong between the nodes of a job.
#[derive(Debug, thiserror::Error)]
pub enum RendezvousError {
    /// The coordinator cannot listen.
    #[error("cannot listen on {address} for the other nodes")]
    Listen {
        /// The address asked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something that every rendezvous needs.
    #[error("cannot {what} for the other nodes")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The meeting file cannot be written or read.
    #[error("cannot {what} the meeting file {path}", path = path.display())]
    MeetingFile {
        /// Write or read.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can know the secret in the meeting file, or made it up.
    #[error("the meeting file {path} is not used: {why}", path = path.display())]
    UnsafeMeetingFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No address answered as the coordinator does.
    #[error("node {node} did not find the coordinator in {:.0} s: {}", waited.as_secs_f64(), tried_text(tried))]
    NotFound {
        /// This node.
        node: usize,
        /// How long it was looked for.
        waited: Duration,
        /// What was tried last, and what came of it.
        tried: Vec<Tried>,
    },
    /// Another agent has this node's index.
    #[error("node index {node} is taken: the agent on {holder} has it, and is there")]
    Taken {
        /// The index.
        node: usize,
        /// Host and address of who has it.
        holder: String,
    },
    /// Nodes are not alike.
    #[error("{0}")]
    Mismatch(Mismatch),
    /// Too few nodes came.
    #[error("too few nodes: {0}")]
    Missing(Box<Attendance>),
    /// Enough nodes came, and the run cannot be divided among them.
    #[error("no set of the nodes that are ready can run this config: {0}")]
    NoFit(Box<Attendance>),
    /// A member was lost before the generation was started.
    #[error("node {node} was lost before generation {generation} was started: {why}")]
    MemberLost {
        /// The generation.
        generation: u64,
        /// The node.
        node: usize,
        /// How that was found out.
        why: String,
    },
    /// A barrier was not passed.
    #[error("barrier `{name}` of generation {generation} was not passed in {:.1} s: {}{}", waited.as_secs_f64(), missing_text(missing), because(lost.as_ref()))]
    Barrier {
        /// Its name.
        name: String,
        /// The generation.
        generation: u64,
        /// Since the first member came.
        waited: Duration,
        /// Members that did not come.
        missing: Vec<usize>,
        /// Which one was lost and how, if that is why.
        lost: Option<(usize, String)>,
    },
    /// What was asked for belongs to a generation that is over.
    #[error("generation {generation} is over")]
    Stale {
        /// The generation.
        generation: u64,
    },
    /// The coordinator is gone.
    #[error("the coordinator is lost: {why}")]
    CoordinatorLost {
        /// How that was found out.
        why: String,
    },
    /// The job has ended.
    #[error("the job has ended: {text}")]
    Finished {
        /// The code that it ended with.
        code: u8,
        /// What the coordinator says of it.
        text: String,
    },
    /// More than a message can carry.
    #[error("{what} has {len} bytes, and a message between nodes carries {most} at most")]
    TooLong {
        /// What was to be sent.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// The bytes allowed.
        most: usize,
    },
    /// The caller asked for what makes no sense, and says so in its own words.
    #[error("{0}")]
    Misuse(String),
}

impl RendezvousError {
    /// The code to exit with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listen { .. }
            | Self::System { .. }
            | Self::MeetingFile { .. }
            | Self::UnsafeMeetingFile { .. }
            | Self::Mismatch(_) => ExitCode::Environment.code(),
            Self::NotFound { .. } | Self::Missing(_) | Self::Barrier { .. } => {
                ExitCode::RendezvousTimeout.code()
            }
            Self::Taken { .. } | Self::NoFit(_) => ExitCode::Usage.code(),
            Self::CoordinatorLost { .. } => ExitCode::Requeue.code(),
            Self::Finished { code, .. } => *code,
            Self::MemberLost { .. }
            | Self::Stale { .. }
            | Self::TooLong { .. }
            | Self::Misuse(_) => ExitCode::Failed.code(),
        }
    }

    /// What to try next.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "another process has the port: leave the port out, and a free one is taken"
            }
            Self::Listen { .. } => "see whether the address is one of this machine: `ip addr`",
            Self::System { .. } => "limits on open files may be too low: `ulimit -n`",
            Self::MeetingFile { .. } => {
                "it has to be in a directory that all nodes see and this user may write to"
            }
            Self::UnsafeMeetingFile { .. } => {
                "remove it, and start the job again in a directory of this user"
            }
            Self::NotFound { .. } => {
                "see whether node 0 was started, sees the same run directory, and can be reached from \
                 this node: a firewall between the nodes, or another network, shows as timeouts"
            }
            Self::Taken { .. } => "give every node an index of its own",
            Self::Mismatch(_) => {
                "start all nodes from the same build, config and data, then start the job again"
            }
            Self::Missing(_) => {
                "see whether the missing nodes were started and what their agents say; who can run with \
                 fewer nodes gives a range (MIN:MAX)"
            }
            Self::NoFit(_) => {
                "choose a global batch that more numbers of nodes divide, or wait for more nodes"
            }
            Self::CoordinatorLost { .. } => {
                "start the job again: it goes on from its last checkpoint"
            }
            _ => return None,
        })
    }
}

/// An address that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The address, or the file where it should stand.
    pub address: String,
    /// What came of it.
    pub answer: String,
}

/// Who was there when a gathering failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Attendance {
    /// The generation.
    pub generation: u64,
    /// The fewest nodes that are enough.
    pub fewest: usize,
    /// The nodes asked for.
    pub most: usize,
    /// How long it was waited.
    pub waited: Duration,
    /// Nodes that are ready: index and host.
    pub ready: Vec<(usize, String)>,
    /// Nodes that are there and not ready: index and host.
    pub busy: Vec<(usize, String)>,
    /// Indices of which there is no node.
    pub missing: Vec<usize>,
    /// Nodes that were there: index, host and how they were lost.
    pub lost: Vec<(usize, String, String)>,
    /// Nodes that were refused: index, host and why.
    pub refused: Vec<(usize, String, String)>,
    /// What is to be said of those who connected and do not belong to the job.
    pub strangers: Option<String>,
}

/// Nodes that are named with their hosts.
const NAMED: usize = 16;

impl fmt::Display for Attendance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fewest, most, .. } = self;
        write!(formatter, "{} of {most} are ready", self.ready.len())?;
        if fewest != most {
            write!(formatter, " (at least {fewest})")?;
        }
        write!(formatter, " after {:.0} s", self.waited.as_secs_f64())?;
        if !self.ready.is_empty() {
            write!(formatter, "; ready: {}", hosts(&self.ready))?;
        }
        if !self.busy.is_empty() {
            write!(formatter, "; there, and not ready: {}", hosts(&self.busy))?;
        }
        if !self.missing.is_empty() {
            write!(formatter, "; missing: {}", named(&self.missing))?;
        }
        for (node, host, why) in self.lost.iter().take(NAMED) {
            write!(formatter, "; node {node} ({host}) was lost: {why}")?;
        }
        for (node, host, why) in &self.refused {
            write!(formatter, "; node {node} ({host}) was refused: {why}")?;
        }
        self.strangers
            .iter()
            .try_for_each(|text| write!(formatter, "; {text}"))
    }
}

fn hosts(nodes: &[(usize, String)]) -> String {
    if nodes.len() > NAMED {
        let indices: Vec<_> = nodes.iter().map(|(node, _)| *node).collect();
        return named(&indices);
    }
    let texts: Vec<_> = nodes
        .iter()
        .map(|(node, host)| format!("{node} ({host})"))
        .collect();
    texts.join(", ")
}

fn tried_text(tried: &[Tried]) -> String {
    if tried.is_empty() {
        return "no address was given".to_owned();
    }
    let texts: Vec<_> = tried
        .iter()
        .map(|Tried { address, answer }| format!("{address}: {answer}"))
        .collect();
    texts.join("; ")
}

fn missing_text(missing: &[usize]) -> String {
    if missing.is_empty() {
        return "no answer came from the coordinator".to_owned();
    }
    let verb = if missing.len() == 1 { "has" } else { "have" };
    format!("{} {verb} not come", named(missing))
}

fn because(lost: Option<&(usize, String)>) -> String {
    lost.map_or_else(String::new, |(node, why)| {
        format!(" (node {node} was lost: {why})")
    })
}
