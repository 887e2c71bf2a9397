//! What every block of a model is to the engine: a forward, a backward, and a list of parameters.

use std::any::Any;

use candle_core::Tensor;
use cordee_memory::{View, ViewMut};
use cordee_ops::Sequences;

use crate::{ModelError, Parameter};

/// One micro-batch, as every segment sees it.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Which tokens belong together.
    pub sequences: Sequences<'a>,
    /// Input tokens.
    pub inputs: &'a [u32],
    /// The token that follows each input; empty where no loss is asked for.
    pub targets: &'a [u32],
    /// 1 for each target that counts; all count when absent.
    pub loss_mask: Option<&'a [u8]>,
}

impl Context<'_> {
    /// Number of input tokens.
    pub fn tokens(&self) -> usize {
        self.inputs.len()
    }

    /// Checks that the sizes agree.
    pub fn validate(&self) -> Result<(), ModelError> {
        let tokens = self.tokens();
        self.sequences.validate(tokens)?;
        let targets = self.targets.len();
        let counted = [
            ("targets", targets, if targets == 0 { 0 } else { tokens }),
            (
                "mask entries",
                self.loss_mask.map_or(tokens, <[u8]>::len),
                tokens,
            ),
        ];
        for (what, found, expected) in counted {
            if found != expected {
                return Err(ModelError::Batch {
                    tokens,
                    what,
                    found,
                });
            }
        }
        Ok(())
    }
}

/// What a forward keeps for its backward. Both give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All that the backward reads.
    All,
    /// What is dear: what is cheap to compute again from the rest (outputs of norms, activations
    /// of the feed-forward layer) is not kept, and the backward computes it again.
    Dear,
}

impl Keep {
    /// Elements kept of `elements` that are cheap.
    pub(crate) fn of_cheap(self, elements: usize) -> usize {
        match self {
            Self::All => elements,
            Self::Dear => 0,
        }
    }

    /// Keeps what is cheap to compute again, or does not.
    pub(crate) fn cheap(self, tensor: Tensor) -> Option<Tensor> {
        match self {
            Self::All => Some(tensor),
            Self::Dear => None,
        }
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
    /// Lends `views`, one for each parameter that `ids` names, in that order; `received`, of which
    /// there is one for each parameter of the model, remembers which were asked for.
    ///
    /// # Panics
    /// If there are not as many views as ids.
    pub fn new(views: &'a mut [ViewMut<'m>], ids: &'a [usize], received: &'a mut [bool]) -> Self {
        assert_eq!(views.len(), ids.len(), "one view for each parameter");
        Self {
            views,
            ids,
            received,
        }
    }

    /// The gradient of the segment's parameter of index `local`.
    pub fn get(&mut self, local: usize) -> &mut ViewMut<'m> {
        self.received[self.ids[local]] = true;
        &mut self.views[local]
    }

    /// The gradients of two of the segment's parameters.
    ///
    /// # Panics
    /// If they are the same.
    pub fn get_both(&mut self, first: usize, second: usize) -> [&mut ViewMut<'m>; 2] {
        for local in [first, second] {
            self.received[self.ids[local]] = true;
        }
        self.views
            .get_disjoint_mut([first, second])
            .expect("two parameters of one segment are two views")
    }
}

/// What a segment's forward keeps for its backward, of a type that only the segment knows.
pub struct Saved(Box<dyn Any + Send>);

impl Saved {
    /// Keeps `what`.
    pub fn new(what: impl Any + Send) -> Self {
        Self(Box::new(what))
    }

    /// Gives back what `segment` kept.
    pub fn take<T: Any>(self, segment: &'static str) -> Result<T, ModelError> {
        match self.0.downcast() {
            Ok(what) => Ok(*what),
            Err(_) => Err(ModelError::Saved { segment }),
        }
    }
}

/// A block of a decoder: takes the residual stream `[tokens, dim]` and returns the next.
pub trait Segment: Send + Sync {
    /// The parameters, in the order in which [`Weights::get`] and [`Gradients::get`] count them.
    fn parameters(&self) -> &[Parameter];

    /// The output, and what the backward will need.
    fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: Tensor,
        keep: Keep,
    ) -> Result<(Tensor, Saved), ModelError>;

    /// Elements that a forward keeps for each token, its input among them.
    fn kept_per_token(&self, keep: Keep) -> usize;

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
