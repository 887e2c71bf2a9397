//! A linear layer, or some rows of one that several share.

use std::ops::Range;

use candle_core::Tensor;
use cordee_memory::View;
use cordee_ops::{
    Write,
    linear::{self, Branch},
};

use crate::{Gradients, Init, ModelError, Weights, parameter::ParameterList};

/// y = x W^T + b, or without b.
#[derive(Debug)]
pub(crate) struct Projection {
    weight: usize,
    bias: Option<usize>,
    /// Of a weight that several projections share, those that are this one's.
    rows: Option<Range<usize>>,
}

impl Projection {
    /// A weight `[out, in]` of normally distributed elements, and a bias of zeros if there is one.
    pub(crate) fn new(
        list: &mut ParameterList,
        name: &str,
        shape: [usize; 2],
        has_bias: bool,
        std: f64,
    ) -> Self {
        let weight = list.add(&format!("{name}.weight"), &shape, Init::Normal { std });
        let bias = has_bias.then(|| list.add(&format!("{name}.bias"), &shape[..1], Init::Zeros));
        Self {
            weight,
            bias,
            rows: None,
        }
    }

    /// GPT-2's `Conv1D`: with a bias, and held by files as its transpose.
    pub(crate) fn conv1d(
        list: &mut ParameterList,
        name: &str,
        shape: [usize; 2],
        std: f64,
    ) -> Self {
        let weight = list.add_transposed(&format!("{name}.weight"), shape, Init::Normal { std });
        let bias = list.add(&format!("{name}.bias"), &shape[..1], Init::Zeros);
        Self {
            weight,
            bias: Some(bias),
            rows: None,
        }
    }

    /// `N` projections that divide the rows of this one, whose outputs are `out`, among them.
    pub(crate) fn split<const N: usize>(&self, out: usize) -> [Self; N] {
        let each = out / N;
        std::array::from_fn(|index| Self {
            weight: self.weight,
            bias: self.bias,
            rows: Some(index * each..(index + 1) * each),
        })
    }

    /// Of `x`, and added to `residual` if there is one.
    pub(crate) fn forward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, ModelError> {
        let bias = self.bias.map(|bias| self.part(weights.get(bias)));
        let weight = self.part(weights.get(self.weight))?;
        Ok(linear::forward(x, weight, bias.transpose()?, residual)?)
    }

    /// Adds the gradients of weight and bias.
    pub(crate) fn backward_parameters(
        &self,
        dy: &Tensor,
        x: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<(), ModelError> {
        if let Some(rows) = &self.rows {
            let mut dweight = gradients.get(self.weight)?.rows_mut(rows.clone())?;
            linear::backward_weight(dy, x, &mut dweight, Write::Add)?;
        } else {
            let (dweight, write) = gradients.write(self.weight);
            linear::backward_weight(dy, x, dweight, write)?;
        }
        match (self.bias, &self.rows) {
            (None, _) => {}
            (Some(bias), None) => linear::backward_bias(dy, gradients.get(bias)?)?,
            (Some(bias), Some(rows)) => {
                linear::backward_bias(dy, &mut gradients.get(bias)?.rows_mut(rows.clone())?)?;
            }
        }
        Ok(())
    }

    /// The gradient of the input; adds those of weight and bias.
    pub(crate) fn backward(
        &self,
        weights: Weights<'_>,
        dy: &Tensor,
        x: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let dx = backward_input(weights, [(self, dy)])?;
        self.backward_parameters(dy, x, gradients)?;
        Ok(dx)
    }

    fn part<'a>(&self, view: View<'a>) -> Result<View<'a>, ModelError> {
        match &self.rows {
            None => Ok(view),
            Some(rows) => Ok(view.rows(rows.clone())?),
        }
    }
}

/// The gradient of an input that several projections read, from those of their outputs.
pub(crate) fn backward_input<const N: usize>(
    weights: Weights<'_>,
    outputs: [(&Projection, &Tensor); N],
) -> Result<Tensor, ModelError> {
    let branches = outputs
        .map(|(projection, dy)| {
            let weight = projection.part(weights.get(projection.weight))?;
            Ok(Branch { dy, weight })
        })
        .into_iter()
        .collect::<Result<Vec<_>, ModelError>>()?;
    Ok(linear::backward_input(&branches)?)
}
