//! The nodes of a job, as the one that leads it sees them: node 0, whose agent keeps the store.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use cordee_launch::{
    HungRank, Launch, Observer, Outcome, StopRequests,
    rendezvous::{
        Coordinator, CoordinatorEvent, CoordinatorOptions, Fingerprint, Gather, Member, NodeInfo,
        NodeState, RendezvousError,
    },
};
use cordee_protocol::{ExitCode, Secret};
use serde_json::Value;

use super::{
    Nodes, failed,
    report::{NodeReport, Part, Sent, Told, merge},
};
use crate::{commands::ranks, failure::Failure};

/// How long a proof of belonging to the job may take.
const GREETING: Duration = Duration::from_secs(5);
/// How long a first node that cannot lead stays to say so.
const IN_VAIN: Duration = Duration::from_secs(10);
/// How often it is looked what has come.
const SLICE: Duration = Duration::from_millis(50);
/// How long the node with the cause of a failure may take to tell of it, once others have told that they
/// fell because of it: its process is gone for its launcher only when the kernel has freed what it had.
const CAUSE: Duration = Duration::from_secs(2);
/// How long a node may take to end ranks beyond the time after which it counts as lost: as long as the
/// launcher waits for a process that does not die.
const ENDING: Duration = Duration::from_secs(40);

/// The nodes, and who leads them.
pub(crate) struct Crew {
    coordinator: Coordinator,
    secret: Secret,
    terms: Terms,
    generation: u64,
}

/// Who is enough, and how long is waited.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) fewest: usize,
    pub(crate) most: usize,
    pub(crate) last_call: Duration,
    pub(crate) join_timeout: Duration,
    pub(crate) node_timeout: Duration,
}

/// How this node's ranks stand, for a verdict on those of all nodes.
pub(crate) type Look<'a> = &'a (dyn Fn() -> Vec<HungRank> + Sync);

/// Hears now and then how all nodes stand.
pub(crate) type Tell<'a> = &'a (dyn Fn(&[NodeState]) + Sync);

impl Crew {
    /// Begins to lead.
    pub(crate) fn start(
        nodes: &Nodes,
        terms: Terms,
        workers: usize,
        fingerprint: Fingerprint,
    ) -> Result<Self, Failure> {
        let secret = match &nodes.secret {
            Some(secret) => secret.clone(),
            None => Secret::random()
                .context("drawing the job's secret")
                .map_err(|error| Failure::new(ExitCode::Environment, error))?,
        };
        let coordinator = Coordinator::start(CoordinatorOptions {
            job: nodes.job.clone(),
            secret: secret.clone(),
            bind: nodes.bind(),
            host_name: nodes.endpoint.as_ref().map(|(host, _)| host.clone()),
            meeting_file: nodes.meeting_file()?,
            host: nodes.host.clone(),
            workers,
            payload: Value::Null,
            fingerprint,
            expected: terms.most,
            node_timeout: terms.node_timeout,
            greeting_timeout: GREETING,
        });
        Ok(Self {
            coordinator: coordinator.map_err(failed)?,
            secret,
            terms,
            generation: 0,
        })
    }

    /// The most nodes that the job runs with.
    pub(crate) fn most(&self) -> usize {
        self.terms.most
    }

    /// Tells whoever comes in the next seconds that the job came to nothing, and why: they would wait for
    /// this node in vain.
    pub(crate) fn refuse_all(self, failure: &Failure) {
        self.coordinator
            .refuse_all(failure.code, &failure.to_string(), IN_VAIN);
    }

    /// Addresses of this node, as others may reach it.
    pub(crate) fn addresses(&self) -> &[String] {
        self.coordinator.addresses()
    }

    /// What processes of the job know and nobody else.
    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// How all nodes stand.
    pub(crate) fn nodes(&self) -> Vec<NodeState> {
        self.coordinator.nodes()
    }

    /// Counts that a node was to blame.
    pub(crate) fn blame(&self, node: usize) {
        self.coordinator.blame(node);
    }

    /// Waits for the nodes of the next attempt; this one is the first. `None`, if somebody asked to stop
    /// meanwhile.
    pub(crate) fn gather(
        &mut self,
        offer: &Value,
        fits: &(dyn Fn(&[&NodeInfo]) -> bool + Sync),
        stop: &StopRequests,
    ) -> Result<Option<Vec<Member>>, Failure> {
        self.generation += 1;
        // What is left of the last attempt is over.
        while let Some(event) = self
            .coordinator
            .next_event(Duration::ZERO)
            .map_err(failed)?
        {
            if let CoordinatorEvent::StopRequested { count, .. } = event {
                stop.request_in_all(count);
            }
        }
        let gather = Gather {
            generation: self.generation,
            fewest: self.terms.fewest,
            most: self.terms.most,
            last_call: self.terms.last_call,
            join_timeout: self.terms.join_timeout,
            offer: offer.clone(),
        };
        let coordinator = &self.coordinator;
        thread::scope(|scope| {
            let gathering = scope.spawn(move || coordinator.gather(gather, fits));
            while !gathering.is_finished() {
                self.hear_of_requests(stop)?;
                if stop.count() > 0 {
                    coordinator.give_up();
                }
            }
            let members = gathering.join().expect("gathering does not panic");
            if stop.count() > 0 {
                return Ok(None);
            }
            members.map(Some).map_err(failed)
        })
    }

    /// Takes note of requests to stop that nodes were sent while nothing runs.
    fn hear_of_requests(&self, stop: &StopRequests) -> Result<(), Failure> {
        if let Some(CoordinatorEvent::StopRequested { count, .. }) =
            self.coordinator.next_event(SLICE).map_err(failed)?
        {
            stop.request_in_all(count);
        }
        Ok(())
    }

    /// Hands out what each member is to do, this node's first. `false`, if one was lost meanwhile.
    pub(crate) fn start_all(&self, assignments: Vec<Value>) -> Result<bool, Failure> {
        match self
            .coordinator
            .start_generation(self.generation, assignments)
        {
            Ok(()) => Ok(true),
            Err(RendezvousError::MemberLost { .. }) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Runs this node's part of the attempt and sees all others through to their end.
    pub(crate) fn see_through(
        &self,
        parts: Vec<Part>,
        (launch, observer): (&Launch, &mut dyn Observer),
        stop: &StopRequests,
        (look, tell): (Look<'_>, Tell<'_>),
    ) -> Result<Outcome, Failure> {
        let own_stop = StopRequests::new()
            .context("counting requests")
            .map_err(|error| Failure::new(ExitCode::Environment, error))?;
        let (ended, endings) = channel();
        let watch = Watch {
            crew: self,
            begun: Instant::now(),
            parts: parts.into_iter().map(|part| (part.node, part)).collect(),
            told: Vec::new(),
            seen: Vec::new(),
            stop,
            own_stop: &own_stop,
            asked: 0,
            ending: None,
            cause_by: None,
            look,
        };
        thread::scope(|scope| {
            let watching = scope.spawn(move || watch.run(&endings, tell));
            let own = ranks::see_through(launch, observer, &own_stop);
            let report = match &own {
                Ok(outcome) => NodeReport::of(outcome),
                Err(failure) => NodeReport::NotStarted {
                    code: failure.code,
                    text: failure.to_string(),
                },
            };
            // The watch is over early only where the store broke, and says so.
            let _ = Sender::send(&ended, report);
            watching.join().expect("watching does not panic")
        })
    }

    /// Tells all nodes that the job is over.
    pub(crate) fn finish(self, code: u8, text: &str) {
        self.coordinator.finish(code, text);
    }
}

/// Watches the nodes of an attempt.
struct Watch<'a> {
    crew: &'a Crew,
    begun: Instant,
    /// Those that have not ended.
    parts: BTreeMap<usize, Part>,
    told: Vec<(Part, Told)>,
    seen: Vec<HungRank>,
    stop: &'a StopRequests,
    own_stop: &'a StopRequests,
    /// Requests to stop that were passed on.
    asked: usize,
    /// Since when all are to end.
    ending: Option<Instant>,
    /// When all are to end, unless the cause of what has happened is heard before.
    cause_by: Option<Instant>,
    look: Look<'a>,
}

impl Watch<'_> {
    fn run(mut self, own: &Receiver<NodeReport>, tell: Tell<'_>) -> Result<Outcome, Failure> {
        let mut looked = None;
        while !self.parts.is_empty() {
            self.pass_on_requests();
            if let Ok(report) = own.try_recv() {
                self.ended(0, report, Vec::new());
            }
            let event = self.crew.coordinator.next_event(SLICE);
            let event = event.inspect_err(|_| self.own_stop.end());
            if let Some(event) = event.map_err(failed)? {
                self.heard(event);
            }
            self.expire();
            if looked.is_none_or(|at: Instant| at.elapsed() >= Duration::from_secs(1)) {
                looked = Some(Instant::now());
                tell(&self.crew.nodes());
            }
        }
        Ok(merge(self.told, self.seen, self.begun.elapsed()))
    }

    fn heard(&mut self, event: CoordinatorEvent) {
        match event {
            CoordinatorEvent::Ended {
                node,
                generation,
                report,
            } if generation == self.crew.generation => match serde_json::from_value(report) {
                Ok(Sent { report, seen }) => self.ended(node, report, seen),
                Err(error) => {
                    let why = format!("its report makes no sense: {error}");
                    self.lost(node, Told::Lost(why));
                }
            },
            CoordinatorEvent::Lost {
                node,
                member: true,
                why,
            } if self.parts.contains_key(&node) => self.lost(node, Told::of_loss(&why)),
            // Each of many nodes may have been asked once by the same scheduler.
            CoordinatorEvent::StopRequested { count, .. } => self.stop.request_in_all(count),
            _ => {}
        }
    }

    fn ended(&mut self, node: usize, report: NodeReport, seen: Vec<HungRank>) {
        self.seen.extend(seen);
        let (failed, hangs) = (report.is_failure(), report.is_hang());
        if matches!(report, NodeReport::Interrupted) {
            // Asked before its ranks were there, which those of others would wait for.
            self.end(false);
        } else if report.is_of_victims() {
            self.cause_by.get_or_insert_with(|| Instant::now() + CAUSE);
        } else if failed {
            self.end(hangs);
        }
        self.note(node, Told::Ended(report));
    }

    fn lost(&mut self, node: usize, told: Told) {
        self.note(node, told);
        self.end(false);
    }

    fn note(&mut self, node: usize, told: Told) {
        if let Some(part) = self.parts.remove(&node) {
            self.told.push((part, told));
        }
    }

    /// Has all others end.
    fn end(&mut self, look: bool) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Instant::now());
        self.crew.coordinator.end(self.crew.generation, look);
        if self.parts.contains_key(&0) {
            if look {
                self.seen.extend((self.look)());
            }
            self.own_stop.end();
        }
    }

    fn pass_on_requests(&mut self) {
        let count = self.stop.count();
        if count == self.asked {
            return;
        }
        self.asked = count;
        if count == 1 {
            self.crew.coordinator.stop(self.crew.generation);
            self.own_stop.request_in_all(1);
        } else {
            self.end(false);
        }
    }

    /// A node that is there and does not end its ranks counts as lost.
    fn expire(&mut self) {
        if self.cause_by.is_some_and(|at| at <= Instant::now()) {
            self.end(false);
        }
        let patience = self.crew.terms.node_timeout + ENDING;
        if self.ending.is_some_and(|since| since.elapsed() > patience) {
            let others: Vec<usize> = self
                .parts
                .keys()
                .copied()
                .filter(|&node| node != 0)
                .collect();
            for node in others {
                self.note(node, Told::Lost("it does not end its ranks".to_owned()));
            }
        }
    }
}

/// The ranks of each member, in order.
pub(crate) fn parts(members: &[Member]) -> Vec<Part> {
    let mut first = 0;
    let part = |member: &Member| {
        let ranks: Range<usize> = first..first + member.info.workers;
        first = ranks.end;
        Part {
            node: member.info.node,
            host: member.info.host.clone(),
            ranks,
        }
    };
    members.iter().map(part).collect()
}

/// A value that a caller made itself and that does not read back is a defect.
pub(crate) fn to_value(what: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(what).map_err(|error| {
        Failure::new(
            ExitCode::Failed,
            anyhow!("writing for other nodes: {error}"),
        )
    })
}
