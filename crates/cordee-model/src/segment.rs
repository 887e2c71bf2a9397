//! What every block of a model is to the engine: a forward, a backward, and a list of parameters.

use std::any::Any;

use candle_core::Tensor;
use cordee_memory::{View, ViewMut};
use cordee_ops::{Sequences, Write, attention};

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

/// Which gradients the backwards of a step have reached, and which any backward has.
#[derive(Clone, Debug)]
pub struct Reached {
    ever: Vec<bool>,
    /// Of a parameter that is not among these, the gradient's memory holds what an earlier step left.
    in_step: Vec<bool>,
}

impl Reached {
    /// None of the gradients of so many parameters.
    pub fn new(parameters: usize) -> Self {
        Self {
            ever: vec![false; parameters],
            in_step: vec![false; parameters],
        }
    }

    /// Begins a step: gradients are anew.
    pub fn begin_step(&mut self) {
        self.in_step.fill(false);
    }

    /// The first parameter that no backward has reached since the start.
    pub fn never(&self) -> Option<usize> {
        self.ever.iter().position(|ever| !ever)
    }

    /// A backward reaches a gradient; whether it is the first of the step.
    fn reach(&mut self, id: usize) -> bool {
        self.ever[id] = true;
        !std::mem::replace(&mut self.in_step[id], true)
    }
}

/// The gradients of one segment, lent for one backward, which adds to them. The first backward of a
/// step finds in their memory what an earlier step left: a gradient is zero once it has been asked
/// for, or else is [written](Self::write) over; those that nobody asked for are zero after
/// [`finish`](Self::finish).
#[derive(Debug)]
pub struct Gradients<'a, 'm> {
    views: &'a mut [ViewMut<'m>],
    ids: &'a [usize],
    reached: &'a mut Reached,
}

impl<'a, 'm> Gradients<'a, 'm> {
    /// Lends `views`, one for each parameter that `ids` names, in that order; `reached`, of all
    /// parameters of the model, remembers which were asked for.
    ///
    /// # Panics
    /// If there are not as many views as ids.
    pub fn new(views: &'a mut [ViewMut<'m>], ids: &'a [usize], reached: &'a mut Reached) -> Self {
        assert_eq!(views.len(), ids.len(), "one view for each parameter");
        Self {
            views,
            ids,
            reached,
        }
    }

    /// The gradient of the segment's parameter of index `local`, to add to.
    pub fn get(&mut self, local: usize) -> Result<&mut ViewMut<'m>, ModelError> {
        self.reach(local)?;
        Ok(&mut self.views[local])
    }

    /// The gradients of two of the segment's parameters, to add to.
    ///
    /// # Panics
    /// If they are the same.
    pub fn get_both(
        &mut self,
        first: usize,
        second: usize,
    ) -> Result<[&mut ViewMut<'m>; 2], ModelError> {
        for local in [first, second] {
            self.reach(local)?;
        }
        let both = self.views.get_disjoint_mut([first, second]);
        Ok(both.expect("two parameters of one segment are two views"))
    }

    /// The gradient of the segment's parameter of index `local`, and whether to add to it or to
    /// replace what an earlier step left: for who writes all of it at once.
    pub fn write(&mut self, local: usize) -> (&mut ViewMut<'m>, Write) {
        let [one] = self.write_all([local]);
        one
    }

    /// The same of several of the segment's parameters.
    ///
    /// # Panics
    /// If two are the same.
    pub fn write_all<const N: usize>(
        &mut self,
        locals: [usize; N],
    ) -> [(&mut ViewMut<'m>, Write); N] {
        let writes = locals.map(|local| {
            if self.reached.reach(self.ids[local]) {
                Write::Replace
            } else {
                Write::Add
            }
        });
        let views = self.views.get_disjoint_mut(locals);
        let mut writes = writes.into_iter();
        views
            .expect("different parameters of one segment are different views")
            .map(|view| (view, writes.next().expect("one for each")))
    }

    /// Ends the backward: what an earlier step left in a gradient that nobody asked for is cleared.
    pub fn finish(self) -> Result<(), ModelError> {
        for (view, &id) in self.views.iter_mut().zip(self.ids) {
            if !std::mem::replace(&mut self.reached.in_step[id], true) {
                view.fill_zero()?;
            }
        }
        Ok(())
    }

    fn reach(&mut self, local: usize) -> Result<(), ModelError> {
        if self.reached.reach(self.ids[local]) {
            self.views[local].fill_zero()?;
        }
        Ok(())
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

    /// The attention that it will ask for, if that may be prepared.
    fn attention(&self) -> Option<attention::Layer> {
        None
    }

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
