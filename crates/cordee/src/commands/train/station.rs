//! What one node does in an attempt, whether it leads or follows: where its ranks can be reached, and what
//! is started once all nodes are known.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use anyhow::Context;
use cordee_config::Plan;
use cordee_data::Corpus;
use cordee_launch::{
    Deadlines, Launch, Own, Pages, Placement, StepTimes, Watch, World, rendezvous::Member,
};
use cordee_protocol::{ExitCode, Secret, StatusPage};
use serde::{Deserialize, Serialize};

use crate::{
    commands::{
        nodes::{Placed, host_name},
        ranks::{self, Logs},
    },
    devices,
    failure::Failure,
    job::{Across, Job, Task, threads_per_rank},
};

/// Where the ranks of a node can be reached in an attempt.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Addresses of the node; likelier ones first.
    pub(super) addresses: Vec<IpAddr>,
    /// A port for each of its ranks.
    pub(super) ports: Vec<u16>,
}

/// What a node does in an attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Assignment {
    /// The job, but for what nodes know by themselves.
    pub(super) job: Job,
    /// How many ranks each node has.
    pub(super) ranks: Vec<usize>,
    /// Which of them this one is.
    pub(super) node: usize,
    /// By rank, where the rank of the same number on the node before can be reached.
    pub(super) below: Vec<Vec<SocketAddr>>,
    pub(super) attempt: usize,
    /// What the run is called.
    pub(super) name: String,
    pub(super) log_dir: PathBuf,
    pub(super) max_restarts: usize,
}

/// This node.
pub(super) struct Station<'a> {
    pub(super) corpus: &'a Corpus,
    pub(super) workers: usize,
    /// Ranks that others start on this machine come before these, or after.
    pub(super) first_local_rank: usize,
    pub(super) local_size: usize,
    pub(super) devices: Vec<String>,
    pub(super) placement: Vec<Option<Placement>>,
    pub(super) host: String,
    /// What earlier attempts have shown of the run's steps.
    pub(super) times: Arc<Mutex<StepTimes>>,
}

impl<'a> Station<'a> {
    /// With so many ranks, and what is to be told of where they run.
    pub(super) fn new(
        plan: &Plan,
        corpus: &'a Corpus,
        workers: usize,
        placed: &Placed,
    ) -> Result<(Self, Option<String>), Failure> {
        let first = placed.local;
        let (placement, told) = devices::placement(plan.device, first + workers)?;
        let labels = devices::labels(plan.device, first + workers)?;
        let station = Self {
            corpus,
            workers,
            first_local_rank: first,
            local_size: workers * placed.locals,
            devices: labels.into_iter().skip(first).collect(),
            placement: placement.into_iter().skip(first).collect(),
            host: host_name(),
            times: Arc::default(),
        };
        Ok((station, told))
    }

    /// Opens a port for each rank, on all of the machine's addresses.
    pub(super) fn listen(&self) -> Result<Vec<TcpListener>, Failure> {
        let any = || {
            // Takes IPv4 too, where the machine has IPv6 at all.
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
        };
        (0..self.workers)
            .map(|_| any())
            .collect::<Result<_, _>>()
            .context("opening a port for each rank")
            .map_err(|error| Failure::new(ExitCode::Environment, error))
    }

    /// What is to be started here, and the pages on which its ranks say how they stand.
    pub(super) fn launch(
        &self,
        assignment: Assignment,
        listeners: Vec<TcpListener>,
        secret: Option<&Secret>,
    ) -> Result<(Launch, Vec<StatusPage>), Failure> {
        let Assignment {
            mut job,
            ranks,
            node,
            below,
            attempt,
            name,
            log_dir,
            max_restarts,
        } = assignment;
        let mut deadlines = None;
        if let Task::Train(task) = &mut job.task {
            self.corpus.entry().clone_into(&mut task.corpus);
            let launch = &task.plan.config.launch;
            deadlines = Some(Deadlines {
                step: launch.step_timeout.0,
                phase: launch.phase_timeout.0,
            });
            job.threads = task
                .plan
                .config
                .parallel
                .threads
                .unwrap_or_else(|| threads_per_rank(self.local_size));
        }
        let world = World {
            size: ranks.iter().sum(),
            first_rank: ranks[..node].iter().sum(),
            node,
            nodes: ranks.len(),
            first_local_rank: self.first_local_rank,
            local_size: self.local_size,
        };
        let mut own = Vec::new();
        if let Some(secret) = secret.filter(|_| ranks.len() > 1) {
            job.across = Some(Across {
                ranks,
                below,
                secret: secret.for_purpose(&format!("ranks of attempt {attempt}")),
            });
            own.extend(listeners.into_iter().map(|listener| Own {
                inherit: Vec::new(),
                stdin: Some(listener.into()),
            }));
        }
        let logs = Logs {
            dir: log_dir,
            attempt,
        };
        let pages =
            Pages::new(self.workers).map_err(|error| Failure::new(ExitCode::Environment, error))?;
        let read = pages.all();
        let launch = Launch {
            ranks: self.workers,
            world,
            own,
            devices: self.devices.clone(),
            placement: self.placement.clone(),
            max_restarts,
            pages: Some(pages),
            watch: deadlines.map(|deadlines| Watch {
                deadlines,
                times: Arc::clone(&self.times),
            }),
            ..ranks::launch_of(&job, &name, logs)?
        };
        Ok((launch, read))
    }
}

/// What every member does, in order, of what the first one would do alone.
pub(super) fn assignments(
    alone: &Assignment,
    members: &[Member],
) -> anyhow::Result<Vec<Assignment>> {
    let ranks: Vec<usize> = members.iter().map(|member| member.info.workers).collect();
    let mut below = Vec::new();
    let mut before: Option<(&Member, Offer)> = None;
    for member in members {
        let offer: Offer = serde_json::from_value(member.offer.clone())
            .with_context(|| format!("reading what node {} offers", member.info.node))?;
        for local in 0..member.info.workers {
            below.push(before.as_ref().map_or_else(Vec::new, |(member, offer)| {
                let port = offer.ports.get(local);
                let seen = member.info.address.iter();
                let addresses = seen.chain(&offer.addresses);
                addresses
                    .zip(port.into_iter().cycle())
                    .map(|(ip, port)| SocketAddr::new(*ip, *port))
                    .collect()
            }));
        }
        before = Some((member, offer));
    }
    let of = |node| Assignment {
        ranks: ranks.clone(),
        node,
        below: below.clone(),
        ..alone.clone()
    };
    Ok((0..members.len()).map(of).collect())
}
