//! Several hosts on one machine: a network namespace and a host name each, and an agent in it.
//!
//! What a scheduler does on a cluster is done here, too: an agent that asks to be queued again is started
//! again. Of the trained program it is known only how it is started, by whom else it is joined, and what
//! its exit codes mean.

mod faults;
mod network;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use cordee_protocol::ExitCode;

use self::network::Network;
pub(super) use self::network::missing;
use super::{
    launcher::{Launcher, Training},
    processes::{self, Process},
};

/// How long nothing may be heard of a host, in words of the config.
pub(super) const SILENCE: Duration = Duration::from_secs(3);

/// A host, as an agent is started on it.
pub(super) struct Host<'a> {
    /// What is put before a command for it to run there.
    pub(super) prefix: Vec<String>,
    pub(super) node: usize,
    pub(super) nodes: usize,
    /// What its agent prints, of all starts.
    pub(super) log: &'a Path,
}

/// What a host is called on record.
pub(super) fn host_name(node: usize) -> String {
    format!("chaos-host-{node}")
}

/// The hosts of a run and their agents, but for the first one's agent, which leads the run.
pub(super) struct Hosts {
    network: Network,
    logs: Vec<PathBuf>,
    /// Of hosts 1, 2 and so on.
    agents: Vec<Option<Launcher>>,
}

impl Hosts {
    /// So many, each with a log in this folder.
    pub(super) fn make(count: usize, logs: &Path) -> anyhow::Result<Self> {
        fs_err::create_dir_all(logs)?;
        Ok(Self {
            network: Network::make(count)?,
            logs: (0..count)
                .map(|node| logs.join(format!("{}.log", host_name(node))))
                .collect(),
            agents: (1..count).map(|_| None).collect(),
        })
    }

    pub(super) fn host(&self, node: usize) -> Host<'_> {
        Host {
            prefix: self.network.enter(node, &host_name(node)),
            node,
            nodes: self.logs.len(),
            log: &self.logs[node],
        }
    }

    /// Starts the agents of all hosts but the first.
    pub(super) fn start(&mut self, training: &Training) -> io::Result<()> {
        (1..self.logs.len()).try_for_each(|node| self.start_agent(node, training))
    }

    fn start_agent(&mut self, node: usize, training: &Training) -> io::Result<()> {
        let agent = training.start_on(Some(&self.host(node)), false)?;
        self.agents[node - 1] = Some(agent);
        Ok(())
    }

    /// Starts agents again that ask for it, as a scheduler would. Whether there is one that has not ended.
    pub(super) fn supervise(&mut self, training: &Training) -> Result<bool, String> {
        for node in 1..self.logs.len() {
            let Some(agent) = &mut self.agents[node - 1] else {
                continue;
            };
            let Some(status) = agent.ended() else {
                continue;
            };
            self.agents[node - 1] = None;
            if status.code() == Some(i32::from(ExitCode::Requeue.code())) {
                let started = self.start_agent(node, training);
                started.map_err(|error| format!("it cannot be started again: {error}"))?;
            } else if !status.success() {
                return Err(format!(
                    "the agent of {} ended by itself with {status}",
                    host_name(node)
                ));
            }
        }
        Ok(self.agents.iter().any(Option::is_some))
    }

    /// The processes of the agents.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.agents.iter().flatten().map(Launcher::pid).collect()
    }

    /// The process of the agent of a host other than the first.
    pub(super) fn agent(&self, node: usize) -> Result<u32, String> {
        let agent = self.agents[node - 1].as_ref();
        agent
            .map(Launcher::pid)
            .ok_or_else(|| format!("{} has no agent", host_name(node)))
    }

    /// Ends all agents at once.
    pub(super) fn kill(&mut self) {
        for agent in &mut self.agents {
            *agent = None;
        }
    }

    /// Takes the network down, and says what is left in it or of it.
    pub(super) fn close(mut self) -> Vec<String> {
        self.kill();
        let left = self.network.processes().into_iter().map(|pid| {
            let name = Process::find(pid).map_or_else(String::new, |it| processes::names(&[it]));
            format!("in a network namespace: {name}")
        });
        let left: Vec<_> = left.collect();
        left.into_iter().chain(self.network.remove()).collect()
    }
}
