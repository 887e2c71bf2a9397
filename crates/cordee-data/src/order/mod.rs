//! The order of samples: from a position in the stream to a source, a window of its tokens and an
//! epoch.
//!
//! A pure function of seed, weights and the number of windows: nothing is built at start, any
//! position costs the same, and no state is kept but the step. Ranks are unknown here: they take
//! ranges of one global stream.

mod mixture;
mod permutation;

use mixture::{Draw, Mixture};
use permutation::{Permutation, key};

use crate::DataError;

/// One sample of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Index of the source.
    pub source: usize,
    /// Index of the window: targets are the tokens `window * seq_len + 1 ..= (window + 1) *
    /// seq_len` of the training split.
    pub window: u64,
    /// How often all windows of the source were drawn before.
    pub epoch: u64,
}

/// The order of samples over all sources.
#[derive(Clone, Debug)]
pub struct Order {
    windows: Vec<u64>,
    mixture: Mixture,
    seed: u64,
}

impl Order {
    /// The order in which sources with so many `windows` each are drawn. `weights` are relative
    /// shares of the stream, one per source; in proportion to the windows when `None`. A source of
    /// weight 0 is never drawn; any other needs at least one window.
    ///
    /// Sources are mixed evenly: any aligned run of a power of two of samples holds each source's
    /// share to within two samples.
    pub fn new(windows: Vec<u64>, weights: Option<&[f64]>, seed: u64) -> Result<Self, DataError> {
        let weights = match weights {
            Some(weights) => weights.to_vec(),
            None => windows.iter().map(|&windows| windows as f64).collect(),
        };
        let refuse = |expected| DataError::Weights {
            weights: weights.clone(),
            expected,
        };
        if weights.len() != windows.len() {
            return Err(refuse("there must be one per source"));
        }
        if weights
            .iter()
            .any(|weight| !weight.is_finite() || *weight < 0.0)
        {
            return Err(refuse("each must be a number that is not negative"));
        }
        if weights.iter().sum::<f64>() <= 0.0 {
            return Err(refuse("at least one must be greater than 0"));
        }
        if weights
            .iter()
            .zip(&windows)
            .any(|(&weight, &windows)| weight > 0.0 && windows == 0)
        {
            return Err(refuse(
                "a source without a whole sequence must have weight 0",
            ));
        }
        let mixture = Mixture::new(&weights, seed)
            .ok_or_else(|| refuse("each must be 0 or at least 2^-32 of their sum"))?;
        Ok(Self {
            windows,
            mixture,
            seed,
        })
    }

    /// The sample at a position of the stream.
    pub fn sample(&self, position: u64) -> Sample {
        let Draw { source, index } = self.mixture.draw(position);
        let windows = self.windows[source];
        let (epoch, index) = (index / windows, index % windows);
        let permutation = Permutation::new(windows, key(&[self.seed, source as u64, epoch]));
        Sample {
            source,
            window: permutation.at(index),
            epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_window_comes_once_in_each_epoch(
            windows in prop::collection::vec(1u64..60, 1..5),
            weights in prop::option::of(prop::collection::vec(0.1f64..5.0, 5)),
            seed: u64,
        ) {
            let sources = windows.len();
            let weights = weights.map(|weights| weights[..sources].to_vec());
            let order = Order::new(windows.clone(), weights.as_deref(), seed).unwrap();
            let mut seen = HashSet::new();
            let mut latest = vec![0; sources];
            let mut drawn = vec![0; sources];
            for position in 0..1000 {
                let sample = order.sample(position);
                prop_assert!(seen.insert((sample.source, sample.epoch, sample.window)));
                prop_assert!(sample.window < windows[sample.source]);
                // An epoch begins when the one before is complete.
                prop_assert_eq!(sample.epoch, drawn[sample.source] / windows[sample.source]);
                drawn[sample.source] += 1;
                latest[sample.source] = sample.epoch;
            }
        }
    }

    #[test]
    fn one_source_is_read_once_in_as_many_samples() {
        let order = Order::new(vec![777], None, 3).unwrap();
        let epoch = |epoch: u64| -> Vec<u64> {
            (epoch * 777..(epoch + 1) * 777)
                .map(|position| order.sample(position).window)
                .collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        for windows in [first, second] {
            assert_eq!(windows.into_iter().collect::<HashSet<_>>().len(), 777);
        }
    }

    #[test]
    fn small_corpora_are_mixed_within_a_few_hundred_samples() {
        let order = Order::new(vec![1300, 2700], None, 1).unwrap();
        for samples in [256, 512, 1024] {
            let first = (0..samples)
                .filter(|&position| order.sample(position).source == 0)
                .count();
            assert!(
                (first as f64 - samples as f64 * 0.325).abs() < 2.0,
                "{first} of {samples}"
            );
        }
    }

    #[test]
    fn the_order_depends_on_the_seed_and_is_what_it_was() {
        let order = |seed: u64| -> Vec<(usize, u64)> {
            let order = Order::new(vec![100, 50], Some(&[1.0, 1.0]), seed).unwrap();
            (0..6)
                .map(|position| order.sample(position))
                .map(|at| (at.source, at.window))
                .collect()
        };
        assert_ne!(order(1), order(2));
        // Runs are resumed by newer programs: the order may not change unnoticed.
        assert_eq!(order(1), ORDER_OF_SEED_1);
    }

    const ORDER_OF_SEED_1: [(usize, u64); 6] =
        [(0, 51), (1, 26), (0, 93), (1, 11), (0, 54), (1, 28)];

    #[test]
    fn weights_that_make_no_sense_are_refused() {
        let refused = |windows: &[u64], weights: &[f64]| {
            Order::new(windows.to_vec(), Some(weights), 0)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&[5, 5], &[1.0]).contains("one per source"));
        assert!(refused(&[5], &[f64::NAN]).contains("not negative"));
        assert!(refused(&[5, 5], &[1.0, -1.0]).contains("not negative"));
        assert!(refused(&[5, 5], &[0.0, 0.0]).contains("greater than 0"));
        assert!(refused(&[5, 0], &[1.0, 1.0]).contains("weight 0"));
        assert!(Order::new(vec![5, 0], Some(&[1.0, 0.0]), 0).is_ok());
    }
}
