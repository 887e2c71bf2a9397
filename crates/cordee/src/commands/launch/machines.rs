//! `cordee launch` on several machines: what the launchers of the others are told, and what they do.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use cordee_launch::{
    Launch, StopRequests, World,
    rendezvous::{Agent, Fingerprint, Member},
};
use cordee_protocol::ExitCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Job, meeting::Place, show::Show};
use crate::{
    commands::nodes::{self, Crew, Follow, Part, Placed, Terms, Watching, host_name},
    failure::Failure,
};

/// How long nothing may be heard of a machine before it counts as lost.
const NODE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

/// What a machine does in an attempt.
#[derive(Debug, Serialize, Deserialize)]
struct Assignment {
    /// How many processes each machine has.
    ranks: Vec<usize>,
    /// Which of them this one is.
    node: usize,
    attempt: usize,
    run_id: String,
    logs: PathBuf,
    /// Where the processes meet; each machine knows best under which address it reaches the first.
    port: u16,
    address: Option<String>,
}

impl Assignment {
    fn world(&self, processes: usize, placed: &Placed) -> World {
        World {
            size: self.ranks.iter().sum(),
            first_rank: self.ranks[..self.node].iter().sum(),
            node: self.node,
            nodes: self.ranks.len(),
            first_local_rank: placed.local,
            local_size: processes * placed.locals,
        }
    }
}

impl Job {
    pub(super) fn terms(&self) -> Terms {
        Terms {
            fewest: self.placed.fewest,
            most: self.placed.most,
            last_call: self.options.last_call,
            join_timeout: self.options.join_timeout,
            node_timeout: NODE_TIMEOUT,
        }
    }

    /// What has to be alike on all machines.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let words = self.program.arguments.iter();
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        Fingerprint::new([
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("program", self.program.path.display().to_string()),
            ("arguments", words.join(" ")),
        ])
    }

    /// Waits for all machines and tells them what to do. Where this one's processes are among all, and
    /// which those are; nothing, if somebody asked to stop meanwhile.
    pub(super) fn gather(
        &self,
        crew: &mut Crew,
        attempt: usize,
        place: &mut Place,
        stop: &StopRequests,
    ) -> Result<Option<(World, Vec<Part>)>, Failure> {
        loop {
            let Some(members) = crew.gather(&Value::Null, &|_| true, stop)? else {
                return Ok(None);
            };
            let ranks = |member: &Member| member.info.workers;
            let named = self.options.place.address.clone();
            // Launchers of other machines may have been started elsewhere.
            let logs = std::path::absolute(&self.logs).context("finding the logs")?;
            let of = |node| Assignment {
                ranks: members.iter().map(ranks).collect(),
                node,
                attempt,
                run_id: self.run_id.clone(),
                logs: logs.clone(),
                port: place.port,
                address: named.clone(),
            };
            let all = (0..members.len()).map(of).map(|it| nodes::to_value(&it));
            if !crew.start_all(all.collect::<Result<_, _>>()?)? {
                continue;
            }
            if named.is_none() && members.len() > 1 {
                let known = crew.addresses().iter();
                let mut known = known.filter_map(|it| it.parse::<SocketAddr>().ok());
                place.address = known
                    .next()
                    .map_or_else(host_name, |it| it.ip().to_string());
            }
            let world = of(0).world(self.options.processes, &self.placed);
            return Ok(Some((world, nodes::parts(&members))));
        }
    }

    /// Does what the first machine says, to the end of the job.
    pub(super) fn follow(&self, show: &mut Show, stop: &StopRequests) -> Result<u8, Failure> {
        let nodes = self
            .placed
            .nodes
            .as_ref()
            .context("who follows is one of several")?;
        let mut hand = Hand { job: self, show };
        let workers = self.options.processes;
        let work = (&mut hand as &mut dyn Follow, stop);
        let (code, text) = nodes::follow(nodes, &self.terms(), workers, self.fingerprint(), work)?;
        match ExitCode::from_code(i32::from(code)) {
            Some(ExitCode::Done | ExitCode::Requeue) => {
                show.console().note(&text);
                Ok(code)
            }
            _ => Err(Failure::with_code(code, anyhow::anyhow!("{text}"))),
        }
    }
}

/// A machine that is not the first.
struct Hand<'a> {
    job: &'a Job,
    show: &'a mut Show,
}

impl Follow for Hand<'_> {
    fn offer(&mut self, _agent: &Agent) -> Result<Value, Failure> {
        Ok(Value::Null)
    }

    fn launch(&mut self, assignment: Value, agent: &Agent) -> Result<Launch, Failure> {
        let assignment: Assignment = serde_json::from_value(assignment)
            .context("reading what this machine is to do")
            .map_err(|error| Failure::new(ExitCode::Failed, error))?;
        let job = self.job;
        let world = assignment.world(job.options.processes, &job.placed);
        let first = agent.coordinator().ip().to_string();
        let place = Place::told(assignment.address.unwrap_or(first), assignment.port);
        Ok(Launch {
            run_id: assignment.run_id,
            log_dir: assignment.logs,
            ..job.launch(assignment.attempt, &place, world)
        })
    }

    fn watch(&mut self) -> Watching<'_> {
        // Programs that are written for others say nothing of how they stand.
        (self.show, Box::new(Vec::new))
    }

    fn note(&mut self, text: &str) {
        self.show.console().note(text);
    }
}
