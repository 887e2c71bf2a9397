//! Jobs on several nodes: how an agent knows its place among the others, and what the first and the
//! others do. What is trained or launched there is not known here.

mod crew;
mod follower;
mod report;

use std::{
    env,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use cordee_config::Plan;
use cordee_launch::{Flags, Identity, rendezvous::RendezvousError};
use cordee_protocol::Secret;

use crate::{args::NodesArgs, failure::Failure};
pub(crate) use crew::{Crew, Terms, parts, to_value};
pub(crate) use follower::{Follow, Watching, follow};
pub(crate) use report::Part;

/// The place of this agent in a job on several nodes, and where they meet.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    /// This node's index.
    pub(crate) node: usize,
    /// The name of its machine.
    pub(crate) host: String,
    /// What the job is called, by its scheduler or by its config.
    pub(crate) job: String,
    /// Where the first node listens, if that is agreed upon.
    pub(crate) endpoint: Option<(String, u16)>,
    /// What processes of the job know and nobody else, if that is agreed upon.
    pub(crate) secret: Option<Secret>,
    /// The folder that all nodes see, where the first one leaves word of where it is.
    pub(crate) folder: PathBuf,
}

impl Nodes {
    /// Whether this is the node that leads.
    pub(crate) fn leads(&self) -> bool {
        self.node == 0
    }

    /// Where the first node leaves word; nowhere, if all is agreed upon.
    fn meeting_file(&self) -> Result<Option<PathBuf>, Failure> {
        match (&self.endpoint, &self.secret) {
            (Some(_), Some(_)) => return Ok(None),
            (Some((host, port)), None) => {
                let error = anyhow!("the nodes are to meet at {host}:{port}, and know no secret");
                return Err(Failure::usage(error).with_hint(format!(
                    "set {TOKEN} to the same long text on all nodes; or name no endpoint, and they meet by way of a \
                     file in a folder that all of them see"
                )));
            }
            (None, _) => {}
        }
        fs_err::create_dir_all(&self.folder)
            .map_err(|error| Failure::new(cordee_protocol::ExitCode::Environment, error))?;
        let name: String = self
            .job
            .chars()
            .map(|it| if it.is_ascii_alphanumeric() { it } else { '-' })
            .collect();
        Ok(Some(self.folder.join(format!(".meeting-{name}.json"))))
    }

    fn bind(&self) -> Option<SocketAddr> {
        let (_, port) = self.endpoint.as_ref()?;
        Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port))
    }
}

/// What an agent knows of its place before it meets any other.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    /// The job's nodes; none, where this is one by itself.
    pub(crate) nodes: Option<Nodes>,
    /// The fewest and the most nodes that the job runs with.
    pub(crate) fewest: usize,
    pub(crate) most: usize,
    /// Started once for each rank, by somebody who also deals out the devices.
    pub(crate) one_worker: bool,
    /// The place of this agent among those of its machine, and how many they are.
    pub(crate) local: usize,
    pub(crate) locals: usize,
    /// What a person should know.
    pub(crate) remarks: Vec<String>,
}

impl Placed {
    /// How long is waited for nodes, by the run's own terms.
    pub(crate) fn terms(&self, plan: &Plan) -> Terms {
        let launch = &plan.config.launch;
        Terms {
            fewest: self.fewest,
            most: self.most,
            last_call: launch.last_call.0,
            join_timeout: launch.join_timeout.0,
            node_timeout: launch.node_timeout.0,
        }
    }
}

/// Finds out the place of this agent, by flags and by what schedulers set. Nodes meet by way of a file in
/// `folder`, unless an endpoint is named; without a scheduler the job is called `name`.
pub(crate) fn place(args: &NodesArgs, name: &str, folder: &Path) -> Result<Placed, Failure> {
    let flags = Flags {
        nnodes: args.nnodes.clone(),
        node_rank: args.node_rank.clone(),
        rdzv_endpoint: args.rdzv_endpoint.clone(),
        rdzv_id: args.rdzv_id.clone(),
    };
    let identity = Identity::find(&flags, &|name| env::var(name).ok()).map_err(|error| {
        let hint = error.hint();
        Failure::usage(error).with_hint(hint)
    })?;
    let mut remarks = identity.remarks;
    let (node, fewest, most) = (identity.node, identity.fewest, identity.most);
    let nodes = identity.several.then(|| Nodes {
        node,
        host: host_name(),
        job: identity.job.unwrap_or_else(|| name.to_owned()),
        endpoint: identity.endpoint,
        secret: env::var(TOKEN).ok().map(|text| Secret::of_text(&text)),
        folder: folder.to_owned(),
    });
    if let (Some(_), Some(source)) = (&nodes, identity.source) {
        let count = if fewest == most {
            most.to_string()
        } else {
            format!("{fewest} to {most}")
        };
        remarks.insert(0, format!("node {node} of {count}, by {source}"));
    }
    Ok(Placed {
        nodes,
        fewest,
        most,
        one_worker: identity.one_worker,
        local: identity.local,
        locals: identity.locals,
        remarks,
    })
}

/// What this machine is called.
pub(crate) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// A text that stands for the job's secret, the same on all of its nodes.
pub(crate) const TOKEN: &str = "CORDEE_JOB_TOKEN";

/// What went wrong between nodes, on its way out.
fn failed(error: RendezvousError) -> Failure {
    let (code, hint) = (error.exit_code(), error.hint());
    let failure = Failure::with_code(code, error);
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}
