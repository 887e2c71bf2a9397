//! A linear layer, or some rows of one that several share.

use std::ops::Range;

use candle_core::Tensor;
use cordee_memory::View;
use cordee_ops::{
    Write,
    linear::{self, Branch, Layer, Outputs, WeightGradient},
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
    /// A weight `[out, in]` of normally distributed elements, without a bias.
    pub(crate) fn new(list: &mut ParameterList, name: &str, shape: [usize; 2], std: f64) -> Self {
        Self {
            weight: list.add(&format!("{name}.weight"), &shape, Init::Normal { std }),
            bias: None,
            rows: None,
        }
    }

    /// Several that read one input, with biases of zeros if there are any: all weights lie one after the
    /// other, and all biases, so that they can be one product.
    pub(crate) fn together<const N: usize>(
        list: &mut ParameterList,
        of: [(&str, [usize; 2]); N],
        has_bias: bool,
        std: f64,
    ) -> [Self; N] {
        let mut all = of.map(|(name, shape)| Self::new(list, name, shape, std));
        if has_bias {
            for (one, (name, shape)) in all.iter_mut().zip(of) {
                one.bias = Some(list.add(&format!("{name}.bias"), &shape[..1], Init::Zeros));
            }
        }
        all
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

    /// Adds the gradient of the bias, if there is one.
    fn backward_bias(
        &self,
        dy: &Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<(), ModelError> {
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
        backward_together(weights, [(self, dy)], x, gradients)
    }

    fn part<'a>(&self, view: View<'a>) -> Result<View<'a>, ModelError> {
        match &self.rows {
            None => Ok(view),
            Some(rows) => Ok(view.rows(rows.clone())?),
        }
    }
}

/// The outputs of several projections of `x`, in their order.
pub(crate) fn forward_together<const N: usize>(
    weights: Weights<'_>,
    x: &Tensor,
    projections: [&Projection; N],
) -> Result<Outputs, ModelError> {
    let layers = projections.map(|projection| {
        let bias = projection
            .bias
            .map(|bias| projection.part(weights.get(bias)));
        Ok(Layer {
            weight: projection.part(weights.get(projection.weight))?,
            bias: bias.transpose()?,
        })
    });
    let layers = layers.into_iter().collect::<Result<Vec<_>, ModelError>>()?;
    Ok(linear::forward_together(x, &layers)?)
}

/// The gradient of `x`, which several projections read, from those of their outputs; adds those of
/// weights and biases.
pub(crate) fn backward_together<const N: usize>(
    weights: Weights<'_>,
    outputs: [(&Projection, &Tensor); N],
    x: &Tensor,
    gradients: &mut Gradients<'_, '_>,
) -> Result<Tensor, ModelError> {
    let branches = outputs
        .map(|(projection, dy)| {
            let weight = projection.part(weights.get(projection.weight))?;
            Ok(Branch { dy, weight })
        })
        .into_iter()
        .collect::<Result<Vec<_>, ModelError>>()?;
    let dx = linear::backward_input(&branches)?;
    if outputs
        .iter()
        .all(|(projection, _)| projection.rows.is_none())
    {
        let views = gradients.write_all(outputs.map(|(projection, _)| projection.weight));
        let mut outputs = outputs.iter();
        let mut written = views.map(|(dweight, write)| WeightGradient {
            dy: outputs.next().expect("one for each").1,
            dweight: dweight.reborrow(),
            write,
        });
        linear::backward_weights(x, &mut written)?;
    } else {
        // Parts of one weight, which are lent one after the other.
        for (projection, dy) in outputs {
            let all = gradients.get(projection.weight)?;
            let rows = projection.rows.clone();
            let mut dweight = all.rows_mut(rows.unwrap_or(0..all.shape()[0]))?;
            linear::backward_weight(dy, x, &mut dweight, Write::Add)?;
        }
    }
    for (projection, dy) in outputs {
        projection.backward_bias(dy, gradients)?;
    }
    Ok(dx)
}
