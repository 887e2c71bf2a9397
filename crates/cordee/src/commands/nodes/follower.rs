//! A node that does what the first one says: it joins, starts ranks when it is told to, and ends them.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use cordee_launch::{
    HungRank, Launch, Observer, StopRequests,
    rendezvous::{Agent, AgentEvent, Fingerprint, JoinOptions, Meet, RendezvousError},
};
use cordee_protocol::ExitCode;
use serde_json::Value;

use super::{
    Nodes, Terms,
    crew::to_value,
    failed,
    report::{NodeReport, Sent},
};
use crate::{commands::ranks, failure::Failure};

/// How often it is looked what has come.
const SLICE: Duration = Duration::from_millis(50);
/// How often the first node is told how this one stands.
const EVERY: Duration = Duration::from_secs(1);

/// Who hears the ranks of a node, and what tells how they stand.
pub(crate) type Watching<'a> = (
    &'a mut dyn Observer,
    Box<dyn Fn() -> Vec<HungRank> + Sync + 'a>,
);

/// What a node does for a job.
pub(crate) trait Follow {
    /// What the others need to know of this node for an attempt; made anew for each.
    fn offer(&mut self, agent: &Agent) -> Result<Value, Failure>;

    /// What is to be started.
    fn launch(&mut self, assignment: Value, agent: &Agent) -> Result<Launch, Failure>;

    /// Who hears the ranks, what tells how they stand for a verdict, and what tells it now and then.
    fn watch(&mut self) -> Watching<'_>;

    /// Hears that the first node is lost and why, or that it is found.
    fn leader_lost(&mut self, why: Option<&str>) {
        let _ = why;
    }

    /// Takes note of a line for whoever reads this node's output.
    fn note(&mut self, text: &str);
}

/// Follows to the end of the job. The exit code, and what is to be said of it.
pub(crate) fn follow(
    nodes: &Nodes,
    terms: &Terms,
    workers: usize,
    fingerprint: Fingerprint,
    (work, stop): (&mut dyn Follow, &StopRequests),
) -> Result<(u8, String), Failure> {
    let mut options = JoinOptions {
        job: nodes.job.clone(),
        node: nodes.node,
        host: nodes.host.clone(),
        workers,
        payload: Value::Null,
        fingerprint,
        meet: match (&nodes.endpoint, &nodes.secret) {
            (Some((host, port)), Some(secret)) => Meet::At {
                address: format!("{host}:{port}"),
                secret: secret.clone(),
            },
            _ => Meet::File(nodes.meeting_file()?.unwrap_or_default()),
        },
        join_timeout: terms.join_timeout,
    };
    work.note(&match &options.meet {
        Meet::At { address, .. } => format!("looking for the first node at {address}"),
        Meet::File(file) => format!("looking for the first node by way of {}", file.display()),
    });
    let mut lost: Option<String> = None;
    loop {
        let Some(joined) = join(&options, stop)? else {
            let text = "stopped on request, before this node had joined";
            return Ok((ExitCode::Requeue.code(), text.to_owned()));
        };
        let agent = match (joined, lost) {
            (Ok(agent), _) => agent,
            (Err(RendezvousError::NotFound { .. }), Some(why)) => {
                return Err(failed(RendezvousError::CoordinatorLost { why }));
            }
            (Err(error), _) => return Err(failed(error)),
        };
        work.note(&format!(
            "node {} has joined at {}",
            nodes.node,
            agent.coordinator()
        ));
        work.leader_lost(None);
        match serve(&agent, work, stop)? {
            Served::Finished(code, text) => return Ok((code, text)),
            Served::Lost(why) if stop.count() > 0 => {
                return Err(failed(RendezvousError::CoordinatorLost { why }));
            }
            Served::Lost(why) => {
                work.note(&format!("the first node is lost: {why}; looking for it"));
                work.leader_lost(Some(&why));
                // A network that was cut heals, and a first node that was killed may be started again.
                options.join_timeout = 2 * terms.node_timeout;
                lost = Some(why);
            }
        }
    }
}

/// Looks for the first node, which may take as long as that needs to be started. `None`, if somebody asked
/// to stop meanwhile.
fn join(
    options: &JoinOptions,
    stop: &StopRequests,
) -> Result<Option<Result<Agent, RendezvousError>>, Failure> {
    let (found, joined) = channel();
    let options = options.clone();
    // Left behind where it is not waited for: the program ends then.
    thread::Builder::new()
        .name("join".to_owned())
        .spawn(move || drop(found.send(Agent::join(&options))))
        .context("starting a thread")
        .map_err(|error| Failure::new(ExitCode::Environment, error))?;
    loop {
        match joined.recv_timeout(SLICE) {
            Ok(joined) => return Ok(Some(joined)),
            Err(RecvTimeoutError::Timeout) if stop.count() > 0 => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("the thread tells what it found"),
        }
    }
}

enum Served {
    Finished(u8, String),
    Lost(String),
}

/// Does what is asked of this node for as long as the connection lasts.
fn serve(agent: &Agent, work: &mut dyn Follow, stop: &StopRequests) -> Result<Served, Failure> {
    let mut asked = 0;
    let mut next = None;
    loop {
        pass_on_requests(agent, stop, &mut asked);
        let Some(event) = next.take().or_else(|| agent.next(SLICE)) else {
            continue;
        };
        match event {
            AgentEvent::Gather { generation } => {
                let offer = work.offer(agent)?;
                // Who is lost says so next.
                let _ = agent.ready(generation, offer);
            }
            AgentEvent::Spare { .. } => {
                work.note("this node is a spare, and waits until it is needed");
            }
            AgentEvent::Start {
                generation,
                assignment,
            } => {
                let (sent, after) = run(agent, generation, assignment, (work, stop))?;
                let _ = agent.ended(generation, to_value(&sent)?);
                next = after;
            }
            // Of a generation whose ranks have ended.
            AgentEvent::Stop { .. } | AgentEvent::End { .. } => {}
            AgentEvent::Finish { code, text } => return Ok(Served::Finished(code, text)),
            AgentEvent::Lost { why } => return Ok(Served::Lost(why.to_string())),
        }
    }
}

fn pass_on_requests(agent: &Agent, stop: &StopRequests, asked: &mut usize) {
    let count = stop.count();
    if count > *asked {
        *asked = count;
        let _ = agent.stop_requested(count);
    }
}

/// Runs this node's part of an attempt. What came meanwhile that is for later comes along.
fn run(
    agent: &Agent,
    generation: u64,
    assignment: Value,
    (work, stop): (&mut dyn Follow, &StopRequests),
) -> Result<(Sent, Option<AgentEvent>), Failure> {
    let launch = match work.launch(assignment, agent) {
        Ok(launch) => launch,
        Err(failure) => {
            let report = NodeReport::NotStarted {
                code: failure.code,
                text: failure.to_string(),
            };
            let seen = Vec::new();
            return Ok((Sent { report, seen }, None));
        }
    };
    let own_stop = StopRequests::new()
        .context("counting requests")
        .map_err(|error| Failure::new(ExitCode::Environment, error))?;
    let done = AtomicBool::new(false);
    let (observer, look) = work.watch();
    let (outcome, (seen, after)) = thread::scope(|scope| {
        let watch = || {
            let mut seen = Vec::new();
            let mut after = None;
            let mut asked = 0;
            let mut told: Option<Instant> = None;
            while !done.load(Ordering::Relaxed) {
                pass_on_requests(agent, stop, &mut asked);
                if told.is_none_or(|at| at.elapsed() >= EVERY) {
                    told = Some(Instant::now());
                    agent.beat(serde_json::to_value(look()).unwrap_or_default());
                }
                match agent.next(SLICE) {
                    Some(AgentEvent::Stop { generation: of })
                        if of == generation && own_stop.count() == 0 =>
                    {
                        own_stop.request();
                    }
                    Some(AgentEvent::End {
                        generation: of,
                        look: wanted,
                    }) if of == generation => {
                        if wanted {
                            seen = look();
                        }
                        own_stop.end();
                    }
                    None | Some(AgentEvent::Stop { .. } | AgentEvent::End { .. }) => {}
                    // Whatever else comes, this generation is over.
                    Some(event) => {
                        own_stop.end();
                        after = Some(event);
                        break;
                    }
                }
            }
            (seen, after)
        };
        let watching = scope.spawn(watch);
        let outcome = ranks::see_through(&launch, observer, &own_stop);
        done.store(true, Ordering::Relaxed);
        (outcome, watching.join().expect("watching does not panic"))
    });
    let report = match outcome {
        Ok(outcome) => NodeReport::of(&outcome),
        Err(failure) => NodeReport::NotStarted {
            code: failure.code,
            text: failure.to_string(),
        },
    };
    Ok((Sent { report, seen }, after))
}
