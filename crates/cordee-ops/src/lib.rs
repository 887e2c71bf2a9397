//! The operators of the training engine, each with a forward and a backward of its own.
//!
//! Activations are candle tensors; parameters, their gradients and the optimizer's state are flat
//! memory, lent for each call as [`View`](cordee_memory::View) and
//! [`ViewMut`](cordee_memory::ViewMut). A gradient of a parameter is *added* to what its memory
//! holds, so that micro-batches accumulate without a pass of their own; those of matrices can
//! replace it instead ([`Write`]), so that the first micro-batch needs no memory that was cleared.
//!
//! One folder per operator: `mod.rs` checks what it is given and is the only way in, `cpu.rs` is the
//! arithmetic on the host, in `f32` and `f64`, and `reference.rs` is the same as loops that read like
//! the formula, which [`conformance`] compares it with. Results depend neither on the number of threads nor on timing: loops run
//! over blocks of fixed size, and sums of blocks are combined in the order of the blocks.
//!
//! This crate knows operators, not models: nothing here knows which layer calls it, what is
//! sharded, or what is kept between forward and backward.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined into a loop is not compiled for the vectors the loop is (`simd`)"
)]

pub mod adamw;
pub mod attention;
pub mod conformance;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod digest;
mod elements;
pub mod embedding;
mod error;
mod float;
pub mod geglu;
pub mod gelu;
pub mod gradient_norm;
pub mod head;
pub mod layer_norm;
pub mod linear;
mod matrix;
mod operand;
#[cfg(target_arch = "x86_64")]
mod panels;
pub mod random;
mod reduce;
pub mod residual;
pub mod rms_norm;
pub mod rotary;
mod sequences;
mod simd;
pub mod swiglu;
#[cfg(test)]
mod testing;
pub mod timing;
pub mod transfer;

pub use device::{Device, GpuFacts, GpuMemoryUse, GpuOptions};
pub use digest::digest;
pub use error::{OpError, Result};
pub use matrix::Write;
pub use sequences::Sequences;
