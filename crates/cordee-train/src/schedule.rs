//! The learning rate of each step.

use cordee_config::{Config, ScheduleKind};

/// The learning rate of step `step`, the first being 1.
///
/// It rises linearly over the warm-up steps, reaches its peak at the last of them, then falls to
/// `min_lr_ratio` of the peak at the last step of the run.
pub fn learning_rate(config: &Config, step: u64) -> f64 {
    let peak = config.optimizer.lr;
    let schedule = &config.schedule;
    let (warmup, steps) = (schedule.warmup_steps.0, config.train.steps.0);
    if step <= warmup {
        return peak * step as f64 / warmup as f64;
    }
    let progress = ((step - warmup) as f64 / (steps - warmup).max(1) as f64).min(1.0);
    let share = match schedule.kind {
        ScheduleKind::Constant => return peak,
        ScheduleKind::Linear => 1.0 - progress,
        ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    };
    peak * (schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * share)
}
