//! Cosines and sines of every position.

#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError};
use std::{f64::consts::TAU, sync::OnceLock};

#[cfg(feature = "cuda")]
use candle_core::Tensor;

use super::OP;
#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    float::Float,
};

/// How frequencies are changed so that a model reaches positions beyond those it was trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Every frequency is divided (Chen et al., 2023).
    Linear {
        /// By this.
        factor: f64,
    },
    /// Llama 3.1's, as Hugging Face computes it: wavelengths longer than
    /// `original_max_positions / low_freq_factor` are multiplied by `factor`, those shorter than
    /// `original_max_positions / high_freq_factor` stay, and between them the frequency is
    /// interpolated.
    Llama3 {
        /// What the lowest frequencies are divided by.
        factor: f64,
        /// Rotations over the original positions below which a frequency is low.
        low_freq_factor: f64,
        /// Rotations over the original positions above which a frequency is high.
        high_freq_factor: f64,
        /// Positions the model was first trained on.
        original_max_positions: usize,
    },
}

impl Scaling {
    fn check(self) -> Result<()> {
        let positive = |name, value: f64| {
            let expected = "a number above 0";
            refuse_unless(value.is_finite() && value > 0.0, name, value, expected)
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => positive("factor", factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions,
            } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low)?;
                positive("original_max_positions", original_max_positions as f64)?;
                let expected = "a number above low_freq_factor";
                let above = high.is_finite() && high > low;
                refuse_unless(above, "high_freq_factor", high, expected)
            }
        }
    }

    /// The scaled frequency, in radians a position, as `frequency` is.
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let rotations = original_max_positions as f64 * frequency / TAU;
                let smooth = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let smooth = smooth.clamp(0.0, 1.0);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

fn refuse_unless(
    holds: bool,
    name: &'static str,
    value: f64,
    expected: &'static str,
) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(OpError::Argument {
        op: OP.0,
        name,
        value,
        expected,
    })
}

/// Angles of the rotary positions, as cosines and sines. They are computed in `f64` and kept in
/// each type that was asked for.
#[derive(Debug)]
pub struct Table {
    head_dim: usize,
    max_positions: usize,
    theta: f64,
    scaling: Scaling,
    single: OnceLock<Waves<f32>>,
    double: OnceLock<Waves<f64>>,
    /// What was uploaded, and where.
    #[cfg(feature = "cuda")]
    uploads: Mutex<Vec<(Gpu, Tensor)>>,
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
    /// with base `theta` of the frequencies before they are scaled.
    pub fn new(
        head_dim: usize,
        max_positions: usize,
        theta: f64,
        scaling: Scaling,
    ) -> Result<Self> {
        let even = head_dim > 0 && head_dim.is_multiple_of(2);
        let width = head_dim as f64;
        refuse_unless(even, "head_dim", width, "an even number above 0")?;
        let positive = theta.is_finite() && theta > 0.0;
        refuse_unless(positive, "theta", theta, "a number above 0")?;
        scaling.check()?;
        let (single, double) = (OnceLock::new(), OnceLock::new());
        Ok(Self {
            head_dim,
            max_positions,
            theta,
            scaling,
            single,
            double,
            #[cfg(feature = "cuda")]
            uploads: Mutex::default(),
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

    /// What `upload` made for this GPU when it was first asked for.
    #[cfg(feature = "cuda")]
    pub(super) fn uploaded(
        &self,
        gpu: &Gpu,
        upload: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tensor)) = uploads.iter().find(|(owner, _)| owner.is(gpu)) {
            return Ok(tensor.clone());
        }
        let tensor = upload()?;
        uploads.push((gpu.clone(), tensor.clone()));
        Ok(tensor)
    }

    fn compute<T: Float>(&self) -> Waves<T> {
        let half = self.head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| self.theta.powf(-2.0 * i as f64 / self.head_dim as f64))
            .map(|frequency| self.scaling.apply(frequency))
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
