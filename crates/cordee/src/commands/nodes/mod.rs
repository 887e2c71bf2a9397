//! Jobs on several nodes: how an agent knows its place among the others, and what the first and the
//! others do. What is trained or launched there is not known here.

mod crew;
mod follower;
mod report;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use cordee_config::{Loaded, Plan};
use cordee_launch::rendezvous::RendezvousError;
use cordee_protocol::Secret;

use crate::{args::NodesArgs, failure::Failure};
pub(crate) use crew::{Crew, Look, Tell, Terms, parts, to_value};
pub(crate) use follower::{Follow, follow};
pub(crate) use report::{NodeReport, Part};

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

/// Finds out the place of this agent, by flags and by what schedulers set.
pub(crate) fn place(
    args: &NodesArgs,
    loaded: &Loaded,
    run_dir: Option<&Path>,
) -> Result<Placed, Failure> {
    let (fewest, most) = match args.nnodes.as_deref() {
        None => (1, 1),
        Some(text) => {
            let (fewest, most) = text.split_once(':').unwrap_or((text, text));
            (fewest.parse().unwrap_or(1), most.parse().unwrap_or(1))
        }
    };
    let node: usize = args
        .node_rank
        .as_deref()
        .and_then(|it| it.parse().ok())
        .unwrap_or(0);
    let runs = run_dir
        .and_then(Path::parent)
        .filter(|it| !it.as_os_str().is_empty());
    let nodes = (most > 1).then(|| Nodes {
        node,
        host: host_name(),
        job: args
            .rdzv_id
            .clone()
            .unwrap_or_else(|| loaded.name().to_owned()),
        endpoint: None,
        secret: std::env::var(TOKEN).ok().map(|text| Secret::of_text(&text)),
        folder: runs.map_or_else(|| PathBuf::from("runs"), Path::to_owned),
    });
    Ok(Placed {
        nodes,
        fewest,
        most,
        one_worker: false,
        local: 0,
        locals: 1,
        remarks: Vec::new(),
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
