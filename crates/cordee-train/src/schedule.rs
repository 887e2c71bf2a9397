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

#[cfg(test)]
mod tests {
    use cordee_config::Count;

    use super::*;

    fn config(kind: ScheduleKind, warmup: u64) -> Config {
        let text = "model = { dim = 8, layers = 1, heads = 1, ffn = 8 }\n\
            data = { seq_len = 8, sources = [] }\n\
            train = { steps = 12, global_batch_size = 1, micro_batch_size = 1 }\n";
        let mut config: Config = toml::from_str(text).unwrap();
        config.optimizer.lr = 2.0;
        config.schedule.kind = kind;
        config.schedule.warmup_steps = Count(warmup);
        config.schedule.min_lr_ratio = 0.5;
        config
    }

    fn rates(config: &Config) -> Vec<f64> {
        (1..=12).map(|step| learning_rate(config, step)).collect()
    }

    fn assert_near(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{found}, expected {expected}"
        );
    }

    #[test]
    fn it_warms_up_to_the_peak_and_ends_at_the_minimum() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            let rates = rates(&config(kind, 4));
            for (step, expected) in [(1, 0.5), (2, 1.0), (4, 2.0), (8, 1.5), (12, 1.0)] {
                assert_near(rates[step - 1], expected);
            }
            assert!(
                rates[3..].windows(2).all(|pair| pair[1] < pair[0]),
                "{rates:?}"
            );
        }
    }

    #[test]
    fn the_shapes_differ_between_peak_and_end() {
        let cosine = learning_rate(&config(ScheduleKind::Cosine, 4), 6);
        assert_near(
            cosine,
            1.0 + 0.5 * (1.0 + std::f64::consts::FRAC_PI_4.cos()),
        );
        assert_near(learning_rate(&config(ScheduleKind::Linear, 4), 6), 1.75);
    }

    #[test]
    fn constant_stays_and_no_warm_up_starts_below_the_peak_only_where_it_falls() {
        assert!(
            rates(&config(ScheduleKind::Constant, 0))
                .iter()
                .all(|rate| (rate - 2.0).abs() < 1e-12)
        );
        assert_near(learning_rate(&config(ScheduleKind::Linear, 0), 12), 1.0);
    }

    #[test]
    fn a_run_that_is_all_warm_up_ends_at_the_peak() {
        assert_near(learning_rate(&config(ScheduleKind::Cosine, 12), 12), 2.0);
    }
}
