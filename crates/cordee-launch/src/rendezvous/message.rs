//! What coordinator and agents say to each other, as JSON in frames.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Fingerprint, Loss, store::Broken};

/// The longest payload of a frame.
pub(super) const MOST_BYTES: usize = 4 << 20;

/// What is known of a node that joined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its index, which the scheduler gave it.
    pub node: usize,
    /// The name of its host.
    pub host: String,
    /// Workers that it would start.
    pub workers: usize,
    /// Where its connection comes from; of the coordinator itself nothing.
    pub address: Option<IpAddr>,
    /// What its agent wants the coordinator to know.
    pub payload: Value,
}

/// From an agent to the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum FromAgent {
    Join {
        node: usize,
        host: String,
        workers: usize,
        payload: Value,
        fingerprint: Fingerprint,
    },
    Ready {
        generation: u64,
        offer: Value,
    },
    /// The status only when it has changed.
    Beat {
        status: Option<Value>,
    },
    Ended {
        generation: u64,
        report: Value,
    },
    StopRequested {
        count: usize,
    },
    Arrive {
        generation: u64,
        name: String,
        within: Duration,
    },
    /// Nothing was heard of the coordinator for so long: this agent gives the connection up. The coordinator
    /// hears it only if it was that which stood still.
    GiveUp {
        after: Duration,
    },
}

/// From the coordinator to an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ToAgent {
    Joined {
        node_timeout: Duration,
    },
    Refused(Refusal),
    Gather {
        generation: u64,
    },
    Spare {
        generation: u64,
    },
    Start {
        generation: u64,
        assignment: Value,
    },
    Stop {
        generation: u64,
    },
    End {
        generation: u64,
        look: bool,
    },
    Finish {
        code: u8,
        text: String,
    },
    Beat,
    Passed {
        generation: u64,
        name: String,
    },
    Broken {
        generation: u64,
        name: String,
        why: Broken,
    },
    /// The coordinator gives the connection up, where it still can say so.
    Lost(Loss),
}

/// Why an agent may not join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// Another agent has its index.
    Taken {
        host: String,
        address: Option<IpAddr>,
    },
    /// Nodes are not alike.
    Mismatch(super::Mismatch),
}
