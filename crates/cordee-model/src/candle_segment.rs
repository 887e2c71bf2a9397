//! A layer of a user's own as a segment: candle's operations forward, candle's autograd backward.
//!
//! Nothing of a graph outlives a call: the forward runs on tensors that candle does not follow, and
//! the backward runs it once more on some that it does, as a recompute.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, Var, backprop::GradStore};
#[cfg(feature = "cuda")]
use candle_core::{
    CudaStorage,
    backend::{BackendDevice, BackendStorage},
};
use cordee_ops::transfer;

use crate::{Context, Gradients, Keep, ModelError, Parameter, Saved, Segment, Weights};

/// What a user writes: a function of the residual stream, in candle's operations.
pub trait CandleLayer: Send + Sync {
    /// The next residual stream, `[tokens, dim]`, of `x`, `[tokens, dim]`; `weights` are the
    /// parameters in the order in which the segment was given them. Must give the same for the
    /// same: it runs again for the backward.
    fn forward(
        &self,
        context: &Context<'_>,
        weights: &[Tensor],
        x: &Tensor,
    ) -> candle_core::Result<Tensor>;
}

impl<F> CandleLayer for F
where
    F: Fn(&Context<'_>, &[Tensor], &Tensor) -> candle_core::Result<Tensor> + Send + Sync,
{
    fn forward(
        &self,
        context: &Context<'_>,
        weights: &[Tensor],
        x: &Tensor,
    ) -> candle_core::Result<Tensor> {
        self(context, weights, x)
    }
}

/// A [`CandleLayer`] with its parameters, as one of a model's blocks.
pub struct CandleSegment<L> {
    name: String,
    dim: usize,
    parameters: Vec<Parameter>,
    layer: L,
}

impl<L: CandleLayer> CandleSegment<L> {
    /// A segment that is called `name` in errors, in a residual stream of width `dim`.
    pub fn new(name: impl Into<String>, dim: usize, parameters: Vec<Parameter>, layer: L) -> Self {
        Self {
            name: name.into(),
            dim,
            parameters,
            layer,
        }
    }

    /// Copies of the parameters: candle owns what it computes with.
    fn weights(&self, weights: Weights<'_>) -> Result<Vec<Tensor>, ModelError> {
        (0..self.parameters.len())
            .map(|index| Ok(transfer::to_tensor(weights.get(index))?))
            .collect()
    }

    fn gradient(
        &self,
        gradients: &mut GradStore,
        of: &Var,
        parameter: &str,
    ) -> Result<Tensor, ModelError> {
        gradients.remove(of).ok_or_else(|| ModelError::NoGradient {
            layer: self.name.clone(),
            parameter: parameter.to_owned(),
        })
    }
}

impl<L: CandleLayer> Segment for CandleSegment<L> {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: Tensor,
        _: Keep,
    ) -> Result<(Tensor, Saved), ModelError> {
        let y = self.layer.forward(context, &self.weights(weights)?, &x)?;
        Ok((y, Saved::new(x)))
    }

    fn kept_per_token(&self, _: Keep) -> usize {
        self.dim
    }

    fn backward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        saved: Saved,
        dy: Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let x: Tensor = saved.take("a layer of candle operations")?;
        let x = Var::from_tensor(&x)?;
        let vars = self
            .weights(weights)?
            .iter()
            .map(Var::from_tensor)
            .collect::<Result<Vec<_>, _>>()?;
        let followed: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = self.layer.forward(context, &followed, x.as_tensor())?;
        let mut found = y.apply_op1(Seed { dy })?.backward()?;
        for (index, (var, parameter)) in vars.iter().zip(&self.parameters).enumerate() {
            let gradient = self.gradient(&mut found, var, &parameter.name)?;
            transfer::add(gradients.get(index)?, &gradient)?;
        }
        self.gradient(&mut found, &x, "x")
    }
}

/// The end of a graph whose backward begins with a given gradient in place of 1.
struct Seed {
    dy: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let nothing = match storage {
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0]),
            _ => CpuStorage::F32(vec![0.0]),
        };
        Ok((nothing, Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = Shape::from(());
        let dtype = storage.dtype();
        let nothing = storage.device.zeros_impl(&shape, dtype)?;
        Ok((nothing, shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.dy.clone()))
    }
}
