//! Faults of hosts: agents that are killed, machines that stand still, links that are cut.

use std::time::{Duration, Instant};

use cordee_metrics::Outcome;
use rustix::process::Signal;

use super::{
    super::{
        kind::FaultKind,
        processes::{self, Handle},
        rank_faults::{HANGS, KILLED, judge},
        records::Ending,
        schedule::Fault,
        trial::{Halt, SLOWEST, Trial},
    },
    Hosts, SILENCE, host_name,
};

/// What the record of a host says that is gone.
const LOST: &str = "node lost";

/// How long a rank that is stopped may go unnoticed before it is clear that it was not within a step.
const NOTICED: Duration = Duration::from_secs(15);

/// How long a host stays away once the others have given it up: it is back before the job has begun to
/// look for it, while that lasts, or so late that its agent has asked to be queued again.
const AWAY: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(3),
    Duration::from_secs(9),
];

/// The host that the record must name. Two that hear nothing of each other are each the lost one for the
/// other, and the first of them writes the record.
fn guilty(fault: &Fault, hosts: usize) -> usize {
    match (fault.kind, fault.host) {
        (FaultKind::LinkCut, Some(0)) if hosts == 2 => 1,
        (_, host) => host.unwrap_or(0),
    }
}

/// What an attempt that ended made of a host's fault, and whether it was that.
fn judge_host(ending: &Ending, node: usize) -> (String, bool) {
    let outcome = format!("{:?}", ending.outcome).to_lowercase();
    let Some(failure) = &ending.failure else {
        return (
            format!("{outcome}, should be {}: {LOST}", host_name(node)),
            false,
        );
    };
    let host = failure.host.as_deref().unwrap_or("no host");
    let words = format!("{host}: {}", failure.class);
    let right = ending.outcome == Outcome::Failed
        && failure.node == Some(node)
        && failure.host.as_deref() == Some(&*host_name(node))
        && failure.class == LOST;
    if right {
        (words, true)
    } else {
        (
            format!("{outcome}, {words}, should be {}: {LOST}", host_name(node)),
            false,
        )
    }
}

/// The same of a rank's fault, whose host has to be named, too.
fn judge_rank(ending: &Ending, fault: &Fault, class: &str) -> (String, bool) {
    let (words, right) = judge(ending, fault.rank, class);
    let failure = ending.failure.as_ref();
    let host = failure.and_then(|it| it.host.clone());
    let host = host.unwrap_or_else(|| "no host".to_owned());
    let node = failure.and_then(|it| it.node);
    let named = node == fault.host && fault.host.map(host_name).as_ref() == Some(&host);
    (format!("{host}, {words}"), right && named)
}

impl Trial {
    /// Kills a rank on whichever host.
    pub(in super::super) fn kill_on_host(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let attempt = self.attempt()?;
        self.rank(&attempt, fault.rank)?.signal(Signal::KILL)?;
        let ending = self.ending(attempt.number)?;
        self.recovered(attempt.number)?;
        Ok(judge_rank(&ending, fault, KILLED))
    }

    /// Stops a rank on whichever host. What it is at is not known here: where nobody notices, it was not in
    /// a step, and it is tried again.
    pub(in super::super) fn stop_on_host(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let patience = self.pace.steps(2 * self.shape.every);
        let noticed = NOTICED + self.pace.step * SLOWEST;
        let begun = Instant::now();
        loop {
            let attempt = self.attempt()?;
            let rank = self.rank(&attempt, fault.rank)?;
            rank.signal(Signal::STOP)?;
            self.hit();
            let stopped = Instant::now();
            let ending = self.wait_for("the verdict", patience, |records| {
                let ending = records.ending(attempt.number).map(Some);
                ending.or_else(|| (stopped.elapsed() > noticed).then_some(None))
            })?;
            if let Some(ending) = ending {
                self.recovered(attempt.number)?;
                return Ok(judge_rank(&ending, fault, HANGS));
            }
            if begun.elapsed() > patience {
                return Err("nobody noticed that a rank is stopped".into());
            }
            rank.signal(Signal::CONT)?;
            self.pause(self.pace.step)?;
        }
    }

    /// Kills the agent of a host other than the first, sees its ranks go, and starts it again.
    pub(in super::super) fn kill_agent(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let attempt = self.attempt()?;
        let node = fault.host.unwrap_or(1);
        let hosts = self.hosts.as_mut().ok_or(ALONE)?;
        let ranks = processes::children(hosts.agent(node)?);
        hosts.agents[node - 1] = None;
        let own = self.own();
        let pids: Vec<u32> = ranks.iter().map(|rank| rank.pid).collect();
        if let Err(left) = processes::wait_until_gone(&own, &pids) {
            let left = processes::names(&left);
            return Err(Halt::GivenUp(format!("the agent is gone, and {left} not")));
        }
        let hosts = self.hosts.as_mut().ok_or(ALONE)?;
        let started = hosts.start_agent(node, &self.training);
        started.map_err(|error| format!("it cannot be started again: {error}"))?;
        let ending = self.ending(attempt.number)?;
        self.recovered(attempt.number)?;
        Ok(judge_host(&ending, node))
    }

    /// Stops all that a host runs for longer than it may be silent.
    pub(in super::super) fn stop_node(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let node = fault.host.unwrap_or(0);
        let this = std::process::id();
        let agent = self.agent(node)?;
        let mut stopped = vec![Handle::open(agent, this)?];
        stopped[0].signal(Signal::STOP)?;
        // It starts none from here on.
        for rank in processes::children(agent) {
            let rank = Handle::open(rank.pid, agent)?;
            rank.signal(Signal::STOP)?;
            stopped.push(rank);
        }
        self.away(fault, node != 0, |_| {
            for process in &stopped {
                // Who was killed meanwhile needs no more.
                let _ = process.signal(Signal::CONT);
            }
            Ok(())
        })
    }

    /// Cuts the link of a host for longer than it may be silent.
    pub(in super::super) fn cut_link(&mut self, fault: &Fault) -> Result<(String, bool), Halt> {
        let node = fault.host.unwrap_or(0);
        self.hosts.as_ref().ok_or(ALONE)?.network.cut(node)?;
        self.away(fault, true, |hosts| hosts.network.mend(node))
    }

    /// Sees the run through while a host is away, and after. `told`: the run's records are written meanwhile.
    fn away(
        &mut self,
        fault: &Fault,
        told: bool,
        back: impl FnOnce(&Hosts) -> Result<(), String>,
    ) -> Result<(String, bool), Halt> {
        self.hit();
        let attempt = self.attempt()?;
        let begun = Instant::now();
        let verdict = if told {
            let verdict = self.ending(attempt.number)?;
            self.pause(SILENCE.saturating_sub(begun.elapsed()))?;
            Some(verdict)
        } else {
            self.pause(SILENCE + Duration::from_secs(1))?;
            None
        };
        self.pause(AWAY[(fault.seed % 3) as usize])?;
        let alone = self.attempt()?.number > attempt.number;
        back(self.hosts.as_ref().ok_or(ALONE)?)?;
        // What the host itself was away is not the run's.
        self.hit.1 = Instant::now();
        let verdict = match verdict {
            Some(verdict) => verdict,
            None => self.ending(attempt.number)?,
        };
        self.recovered(attempt.number)?;
        let (words, right) = judge_host(&verdict, guilty(fault, self.shape.hosts));
        Ok(if alone {
            (format!("{words}, and the run went on without it"), false)
        } else {
            (words, right)
        })
    }
}

/// A fault of hosts where there are none.
const ALONE: &str = "there are no hosts";
