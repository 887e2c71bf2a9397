//! Norms: RMSNorm with gains or with gains less 1, and LayerNorm.

use candle_core::Tensor;
use cordee_config::{ModelConfig, ModelFamily};
use cordee_ops::{layer_norm, rms_norm};

use crate::{Gradients, Init, Keep, ModelError, Weights, parameter::ParameterList};

/// A norm of rows, and where its parameters are.
#[derive(Debug)]
pub(crate) enum Norm {
    Rms {
        weight: usize,
        norm: rms_norm::Norm,
    },
    Layer {
        weight: usize,
        bias: usize,
        eps: f64,
    },
}

/// What a forward gives.
pub(crate) struct Normed {
    /// The normalised rows.
    pub(crate) y: Tensor,
    pub(crate) statistics: Statistics,
}

/// What a backward needs of its forward.
pub(crate) struct Statistics {
    /// LayerNorm's alone.
    mean: Option<Tensor>,
    rstd: Tensor,
}

/// What is kept of a forward: the rows themselves are cheap.
pub(crate) struct KeptNorm {
    y: Option<Tensor>,
    pub(crate) statistics: Statistics,
}

impl Normed {
    pub(crate) fn kept(self, keep: Keep) -> KeptNorm {
        KeptNorm {
            y: keep.cheap(self.y),
            statistics: self.statistics,
        }
    }
}

/// What a backward reads.
pub(crate) struct NormBackward<'a> {
    /// Gradient of the output.
    pub(crate) dy: &'a Tensor,
    /// What was normalised.
    pub(crate) x: &'a Tensor,
    pub(crate) statistics: &'a Statistics,
    /// Gradient that reaches `x` past the norm.
    pub(crate) residual: Option<&'a Tensor>,
}

impl Norm {
    /// Elements of the statistics of a row.
    pub(crate) fn statistics_per_row(&self) -> usize {
        match self {
            Self::Rms { .. } => 1,
            Self::Layer { .. } => 2,
        }
    }

    /// Elements that are kept of a row of `width`: the statistics, and its cheap output.
    pub(crate) fn kept_per_row(&self, width: usize, keep: Keep) -> usize {
        self.statistics_per_row() + keep.of_cheap(width)
    }

    /// The norm that the family has everywhere, of rows of width `dim`.
    pub(crate) fn new(
        list: &mut ParameterList,
        name: &str,
        dim: usize,
        config: &ModelConfig,
    ) -> Self {
        let eps = config.norm_eps;
        let weight_name = format!("{name}.weight");
        if config.family == ModelFamily::Gpt2 {
            return Self::Layer {
                weight: list.add(&weight_name, &[dim], Init::Ones),
                bias: list.add(&format!("{name}.bias"), &[dim], Init::Zeros),
                eps,
            };
        }
        let unit_offset = config.family == ModelFamily::Gemma3;
        let init = if unit_offset { Init::Zeros } else { Init::Ones };
        Self::Rms {
            weight: list.add(&weight_name, &[dim], init),
            norm: rms_norm::Norm { eps, unit_offset },
        }
    }

    pub(crate) fn forward(&self, weights: Weights<'_>, x: &Tensor) -> Result<Normed, ModelError> {
        Ok(match *self {
            Self::Rms { weight, norm } => rms_norm::forward(x, weights.get(weight), norm)?.into(),
            Self::Layer { weight, bias, eps } => {
                layer_norm::forward(x, weights.get(weight), weights.get(bias), eps)?.into()
            }
        })
    }

    /// The sum of `x` and `added`, and its normalised rows.
    pub(crate) fn forward_residual(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        added: &Tensor,
    ) -> Result<(Tensor, Normed), ModelError> {
        Ok(match *self {
            Self::Rms { weight, norm } => {
                let (sum, normed) =
                    rms_norm::forward_residual(x, added, weights.get(weight), norm)?;
                (sum, normed.into())
            }
            Self::Layer { weight, bias, eps } => {
                let (weight, bias) = (weights.get(weight), weights.get(bias));
                let (sum, normed) = layer_norm::forward_residual(x, added, weight, bias, eps)?;
                (sum, normed.into())
            }
        })
    }

    /// The normalised rows of `x`, as they were kept or computed again.
    pub(crate) fn output(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        kept: &KeptNorm,
    ) -> Result<Tensor, ModelError> {
        match &kept.y {
            Some(y) => Ok(y.clone()),
            None => Ok(self.forward(weights, x)?.y),
        }
    }

    /// The gradient of what was normalised.
    pub(crate) fn backward(
        &self,
        weights: Weights<'_>,
        inputs: &NormBackward<'_>,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let NormBackward {
            dy,
            x,
            statistics: Statistics { mean, rstd },
            residual,
        } = *inputs;
        match (self, mean) {
            (&Self::Layer { weight, bias, .. }, Some(mean)) => {
                let norm = layer_norm::Backward {
                    dy,
                    x,
                    weight: weights.get(weight),
                    mean,
                    rstd,
                    residual,
                };
                let [dweight, dbias] = gradients.get_both(weight, bias)?;
                Ok(layer_norm::backward(&norm, dweight, dbias)?)
            }
            (&Self::Rms { weight, norm }, _) => {
                let norm = rms_norm::Backward {
                    norm,
                    dy,
                    x,
                    weight: weights.get(weight),
                    rstd,
                    residual,
                };
                Ok(rms_norm::backward(&norm, gradients.get(weight)?)?)
            }
            (Self::Layer { .. }, None) => Err(ModelError::Saved {
                segment: "a LayerNorm",
            }),
        }
    }
}

impl From<rms_norm::Normed> for Normed {
    fn from(normed: rms_norm::Normed) -> Self {
        Self {
            y: normed.y,
            statistics: Statistics {
                mean: None,
                rstd: normed.rstd,
            },
        }
    }
}

impl From<layer_norm::Normed> for Normed {
    fn from(normed: layer_norm::Normed) -> Self {
        Self {
            y: normed.y,
            statistics: Statistics {
                mean: Some(normed.mean),
                rstd: normed.rstd,
            },
        }
    }
}
