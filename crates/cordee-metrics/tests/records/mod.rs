//! A record to test with.

use cordee_metrics::StepRecord;

/// Step `step` of a run that always goes the same way.
pub(crate) fn step(step: u64) -> StepRecord {
    StepRecord {
        step,
        time: 1_700_000_000.0 + step as f64,
        loss: 8.0 / (step as f64).sqrt(),
        grad_norm: 1.0 / 3.0,
        clipped: false,
        lr: 3e-4,
        tokens: 4096 * step,
        tokens_trained: 4000,
        samples: 16 * step,
        epoch: step as f64 / 100.0,
        step_s: 0.5,
        data_s: 0.001,
        comm_s: 0.01,
        comm_exposed_s: 0.004,
        tokens_per_s: 8192.0,
        host_rss_bytes: 1 << 28,
    }
}
