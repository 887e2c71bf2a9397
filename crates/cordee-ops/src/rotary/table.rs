//! Cosines and sines of every position.

use std::sync::OnceLock;

use super::OP;
use crate::{
    error::{OpError, Result},
    float::Float,
};

/// Angles of the rotary positions, as cosines and sines. They are computed in `f64` and kept in
/// each type that was asked for.
#[derive(Debug)]
pub struct Table {
    head_dim: usize,
    max_positions: usize,
    theta: f64,
    single: OnceLock<Waves<f32>>,
    double: OnceLock<Waves<f64>>,
}

/// Cosines and sines, `[max_positions, half]` each.
#[derive(Debug)]
pub(super) struct Waves<T> {
    /// Half the width of a head.
    pub(super) half: usize,
    pub(super) cos: Vec<T>,
    pub(super) sin: Vec<T>,
}

/// Types for which a table keeps waves.
pub(super) trait Waved: Float {
    fn waves(table: &Table) -> &OnceLock<Waves<Self>>;
}

impl Waved for f32 {
    fn waves(table: &Table) -> &OnceLock<Waves<Self>> {
        &table.single
    }
}

impl Waved for f64 {
    fn waves(table: &Table) -> &OnceLock<Waves<Self>> {
        &table.double
    }
}

impl Table {
    /// A table for heads of width `head_dim`, which is even, and positions below `max_positions`,
    /// with base `theta` of the frequencies.
    pub fn new(head_dim: usize, max_positions: usize, theta: f64) -> Result<Self> {
        let refuse = |name, value, expected| {
            Err(OpError::Argument {
                op: OP.0,
                name,
                value,
                expected,
            })
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return refuse("head_dim", head_dim as f64, "an even number above 0");
        }
        if !(theta.is_finite() && theta > 0.0) {
            return refuse("theta", theta, "a number above 0");
        }
        let (single, double) = (OnceLock::new(), OnceLock::new());
        Ok(Self {
            head_dim,
            max_positions,
            theta,
            single,
            double,
        })
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Positions there are.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    pub(super) fn waves<T: Waved>(&self) -> &Waves<T> {
        T::waves(self).get_or_init(|| self.compute())
    }

    fn compute<T: Float>(&self) -> Waves<T> {
        let half = self.head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| self.theta.powf(-2.0 * i as f64 / self.head_dim as f64))
            .collect();
        let angles = || {
            (0..self.max_positions).flat_map(|position| {
                frequencies
                    .iter()
                    .map(move |frequency| position as f64 * frequency)
            })
        };
        Waves {
            half,
            cos: angles()
                .map(|angle| <T as Float>::of(angle.cos()))
                .collect(),
            sin: angles()
                .map(|angle| <T as Float>::of(angle.sin()))
                .collect(),
        }
    }
}
