//! Jobs on several nodes: how an agent knows its place among the others, and what the first and the
//! others do. What is trained or launched there is not known here.

mod crew;
mod follower;
mod report;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::anyhow;
use cordee_launch::RendezvousError;
use cordee_protocol::Secret;

use crate::failure::Failure;
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
        let name: String = self.job.chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '-' }).collect();
        Ok(Some(self.folder.join(format!(".meeting-{name}.json"))))
    }

    fn bind(&self) -> Option<SocketAddr> {
        let (_, port) = self.endpoint.as_ref()?;
        Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port))
    }
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
