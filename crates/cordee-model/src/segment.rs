//! What every block of a model is to the engine: a forward, a backward, and a list of parameters.

use candle_core::Tensor;
use cordee_memory::{View, ViewMut};

use crate::{ModelError, Parameter};

/// One micro-batch, as every segment sees it.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Sequences.
    pub rows: usize,
    /// Tokens in each.
    pub seq_len: usize,
    /// Input tokens, `rows × seq_len`.
    pub inputs: &'a [u32],
    /// The token that follows each input, `rows × seq_len`; empty where no loss is asked for.
    pub targets: &'a [u32],
    /// 1 for each target that counts; all count when absent.
    pub loss_mask: Option<&'a [u8]>,
}

impl Context<'_> {
    /// Checks that the sizes agree.
    pub fn validate(&self) -> Result<(), ModelError> {
        let tokens = self.rows * self.seq_len;
        let counted = [
            ("inputs", self.inputs.len(), tokens),
            (
                "targets",
                self.targets.len(),
                if self.targets.is_empty() { 0 } else { tokens },
            ),
            (
                "mask entries",
                self.loss_mask.map_or(tokens, <[u8]>::len),
                tokens,
            ),
        ];
        for (what, found, expected) in counted {
            if found != expected {
                return Err(ModelError::Batch {
                    rows: self.rows,
                    seq_len: self.seq_len,
                    what,
                    found,
                });
            }
        }
        Ok(())
    }
}

/// The weights of one segment, lent for one call.
///
/// The views may lie in a whole model's buffer, in a shard gathered a moment ago, or in a copy with
/// an adapter merged in: the segment cannot tell.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    views: &'a [View<'a>],
    ids: &'a [usize],
}

impl<'a> Weights<'a> {
    /// Lends those of `views` that `ids` names, in its order.
    pub fn new(views: &'a [View<'a>], ids: &'a [usize]) -> Self {
        Self { views, ids }
    }

    /// The segment's parameter of index `local`.
    pub fn get(&self, local: usize) -> View<'a> {
        self.views[self.ids[local]]
    }
}

/// The gradients of one segment, lent for one call; a backward adds to them.
#[derive(Debug)]
pub struct Gradients<'a, 'm> {
    views: &'a mut [ViewMut<'m>],
    ids: &'a [usize],
    received: &'a mut [bool],
}

impl<'a, 'm> Gradients<'a, 'm> {
    /// Lends those of `views` that `ids` names; `received` remembers which were asked for.
    pub fn new(views: &'a mut [ViewMut<'m>], ids: &'a [usize], received: &'a mut [bool]) -> Self {
        Self {
            views,
            ids,
            received,
        }
    }

    /// The gradient of the segment's parameter of index `local`.
    pub fn get(&mut self, local: usize) -> &mut ViewMut<'m> {
        let id = self.ids[local];
        self.received[id] = true;
        &mut self.views[id]
    }
}

/// What a forward keeps for its backward.
#[derive(Debug)]
pub struct Saved(Vec<Tensor>);

impl Saved {
    /// Keeps `tensors`.
    pub fn new(tensors: impl Into<Vec<Tensor>>) -> Self {
        Self(tensors.into())
    }

    /// Gives back exactly the `N` tensors that `segment` kept.
    pub fn unpack<const N: usize>(self, segment: &'static str) -> Result<[Tensor; N], ModelError> {
        self.0
            .try_into()
            .map_err(|tensors: Vec<Tensor>| ModelError::Saved {
                segment,
                expected: N,
                found: tensors.len(),
            })
    }
}

/// A block of a decoder: takes the residual stream `[rows × seq_len, dim]` and returns the next.
pub trait Segment: Send + Sync {
    /// The parameters, in the order in which [`Weights::get`] and [`Gradients::get`] count them.
    fn parameters(&self) -> &[Parameter];

    /// The output, and what the backward will need.
    fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: Tensor,
    ) -> Result<(Tensor, Saved), ModelError>;

    /// The gradient with respect to the input, given that of the output; adds to `gradients`.
    fn backward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        saved: Saved,
        dy: Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError>;
}
