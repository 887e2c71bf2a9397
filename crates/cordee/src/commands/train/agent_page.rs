//! What the agent of a node serves to whoever watches it: whether it is well, how the run stands, metrics.
//!
//! Kept up to date by who supervises, so that asking costs nothing.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cordee_launch::{Health, HttpPage, HungRank, MetricsText, PageContent};
use cordee_metrics::{
    Exposition, RankStatus, RunFigures, RunState, RunStatus, TrainingFigures, unix_time,
};
use cordee_protocol::{CallStatus, ExitCode, StepProgress};

use crate::failure::Failure;

/// How old the status of a run that goes on may be: it is made anew every second.
const STALE_S: f64 = 15.0;

/// What is known of the run on this node.
#[derive(Debug)]
pub(super) struct AgentPage {
    run: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    status: Option<RunStatus>,
    training: Option<TrainingFigures>,
    restarts: u64,
    /// Why this node does not do what it should.
    ill: Option<String>,
}

impl AgentPage {
    /// The page of a run that has not begun, and the server of it if one is asked for.
    pub(super) fn open(
        run: &str,
        address: Option<SocketAddr>,
    ) -> Result<(Arc<Self>, Option<HttpPage>), Failure> {
        let page = Arc::new(Self {
            run: run.to_owned(),
            known: Mutex::default(),
        });
        let content = Arc::clone(&page) as Arc<dyn PageContent>;
        let served = address.map(|address| HttpPage::serve(address, content));
        let served = served.transpose().map_err(|error| {
            let hint = error.hint();
            let failure = Failure::new(ExitCode::Environment, error);
            match hint {
                Some(hint) => failure.with_hint(hint),
                None => failure,
            }
        })?;
        Ok((page, served))
    }

    pub(super) fn show(&self, status: &RunStatus) {
        self.known().status = Some(status.clone());
    }

    pub(super) fn step(&self, progress: &StepProgress) {
        self.known().training = Some(TrainingFigures {
            step: progress.step,
            loss: progress.loss,
            tokens_per_second: progress.tokens_per_s,
        });
    }

    pub(super) fn restarted(&self) {
        self.known().restarts += 1;
    }

    /// Says why this node does not do what it should, or that it does again.
    pub(super) fn ill(&self, why: Option<String>) {
        self.known().ill = why;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageContent for AgentPage {
    fn health(&self) -> Health {
        let known = self.known();
        let stale = known
            .status
            .as_ref()
            .filter(|it| it.state == RunState::Running);
        let stale = stale
            .map(|status| unix_time() - status.time)
            .filter(|age| *age > STALE_S);
        let stale = stale.map(|age| format!("nobody has looked at the ranks for {age:.0} s"));
        match known.ill.clone().or(stale) {
            None => Health::good(),
            Some(text) => Health { ok: false, text },
        }
    }

    fn status(&self) -> serde_json::Value {
        let known = self.known();
        serde_json::json!({ "run": self.run, "status": known.status, "ill": known.ill })
    }

    fn metrics(&self, accept: &str) -> MetricsText {
        let format = Exposition::for_accept(accept);
        let known = self.known();
        let text = known.status.as_ref().map(|status| {
            let figures = RunFigures {
                run: &self.run,
                version: env!("CARGO_PKG_VERSION"),
                restarts: known.restarts,
                training: known.training,
                status,
            };
            figures.text(format)
        });
        MetricsText {
            content_type: format.content_type(),
            text: text.unwrap_or_default(),
        }
    }
}

/// How a rank stands, of what its node has told.
pub(super) fn rank_status(rank: &HungRank, node: usize) -> RankStatus {
    let waits_in = rank
        .call
        .as_ref()
        .filter(|call| CallStatus::is_under_way(call));
    RankStatus {
        rank: rank.rank,
        node,
        pid: rank.pid,
        device: rank.device.clone(),
        process: rank.process.to_string(),
        phase: rank.phase.to_string(),
        step: rank.step,
        phase_s: rank.phase_s,
        quiet_s: rank.quiet_s,
        waits_in: waits_in.map(ToString::to_string),
    }
}
