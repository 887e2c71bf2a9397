//! The layers that blocks are made of. Each has a forward, and a backward that adds to the
//! gradients of its parameters; what it keeps between the two is a type of its own.

mod attention;
mod feed_forward;
mod head_input;
mod norm;
mod projection;

pub(crate) use attention::{AttentionKind, Ends, KeptAttention, SelfAttention, usual_scale};
pub(crate) use feed_forward::{FeedForward, Gate, GatedFeedForward, PlainFeedForward};
pub(crate) use norm::{KeptNorm, Norm, NormBackward, Statistics};
pub(crate) use projection::{Projection, backward_together, forward_together};
