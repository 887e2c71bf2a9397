//! What the store knows of a node, and what it tells of it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Connection, Fingerprint, NodeInfo};

/// A node that joined, once at least.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) info: NodeInfo,
    pub(super) fingerprint: Fingerprint,
    /// Of the coordinator itself and of lost nodes there is none.
    pub(super) connection: Option<Connection>,
    pub(super) heard: Duration,
    pub(super) status: Option<Value>,
    pub(super) blamed: u32,
    pub(super) lost: Option<Loss>,
    /// What it offered for the generation that is gathered.
    pub(super) ready: Option<Value>,
}

impl Node {
    pub(super) fn new(
        info: NodeInfo,
        fingerprint: Fingerprint,
        connection: Option<Connection>,
        heard: Duration,
        blamed: u32,
    ) -> Self {
        Self {
            info,
            fingerprint,
            connection,
            heard,
            status: None,
            blamed,
            lost: None,
            ready: None,
        }
    }

    pub(super) fn is_here(&self) -> bool {
        self.lost.is_none()
    }
}

/// A member of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The node.
    pub info: NodeInfo,
    /// What it offered for this generation.
    pub offer: Value,
}

/// How a node stands.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeState {
    /// The node.
    pub info: NodeInfo,
    /// What it is in the generation.
    pub standing: Standing,
    /// How long nothing was heard of it.
    pub silent: Duration,
    /// What its agent said of itself last.
    pub status: Option<Value>,
    /// How often it was to blame.
    pub blamed: u32,
}

/// What a node is in the generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has joined and waits for a generation to be gathered.
    Waiting,
    /// It runs.
    Member,
    /// It was ready, and is not needed.
    Spare,
    /// It is gone.
    Lost(Loss),
}

/// Something that the coordinator has to know.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorEvent {
    /// A node has joined, for the first time or again.
    Joined {
        /// Its index.
        node: usize,
    },
    /// A node may not join.
    Refused {
        /// The index that it gave.
        node: usize,
        /// Its host.
        host: String,
        /// Why, as the rest of a sentence that begins with its name and `was refused: `.
        why: String,
    },
    /// A node is gone.
    Lost {
        /// Its index.
        node: usize,
        /// Whether it was a member of the generation.
        member: bool,
        /// How that was found out.
        why: Loss,
    },
    /// A member's workers have ended.
    Ended {
        /// Its index.
        node: usize,
        /// In which generation.
        generation: u64,
        /// What its agent says of it.
        report: Value,
    },
    /// Somebody asked a node to stop the job.
    StopRequested {
        /// Its index.
        node: usize,
        /// How many times so far.
        count: usize,
    },
}

/// How it was found out that the other end of a connection is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// The connection was closed.
    Closed,
    /// Nothing was heard.
    Silent {
        /// For so long.
        after: Duration,
    },
    /// What came was nothing that an agent says.
    Unreadable(String),
    /// It does not take what is sent to it.
    DoesNotRead,
    /// Another agent joined with the same index while this one was silent.
    Replaced,
    /// The coordinator said that it takes this node for lost.
    GivenUp(Box<Loss>),
    /// The agent heard nothing of the coordinator, and gave it up. The agent is well, then.
    GaveUp {
        /// For so long.
        after: Duration,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => formatter.write_str("its connection was closed"),
            Self::Silent { after } => write!(
                formatter,
                "nothing was heard of it for {:.1} s",
                after.as_secs_f64()
            ),
            Self::Unreadable(what) => write!(formatter, "it could not be understood: {what}"),
            Self::DoesNotRead => formatter.write_str("it does not take what is sent to it"),
            Self::Replaced => formatter
                .write_str("it was silent, and another agent joined with the same node index"),
            Self::GivenUp(why) => write!(formatter, "the coordinator gave this node up: {why}"),
            Self::GaveUp { after } => write!(
                formatter,
                "it heard nothing of the first node for {:.1} s",
                after.as_secs_f64()
            ),
        }
    }
}
