//! Causal attention with grouped queries (Ainslie et al., 2023), exact, in memory linear in the
//! length: the backward computes the probabilities anew from the log-sum-exp of each query's
//! scores, as `FlashAttention` does (Dao et al., 2022).
//!
//! Query head h reads key and value head h / g, where g query heads share each key head. Token i
//! sees token j of its own sequence when j <= i and, under a window, i - j < window, as in Hugging
//! Face's sliding windows.
//!
//! On a GPU `head_dim` is at most 256, and tensor cores compute heads of 64 and 128 in bf16. As in
//! other implementations the backward takes the mean of the gradient of the scores from the rounded
//! output, which in bf16 shows where that gradient is small beside its terms.

mod backward;
mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod cudnn;
mod preparation;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;

use candle_core::Tensor;
use cordee_memory::DType;
pub use preparation::{Layer, Preparation, prepare};

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
use crate::{
    error::{OpError, Result},
    float::Float,
    operand::{Operand, Operator, with_float},
    sequences::Sequences,
    timing::{Pass, Work},
};

const OP: Operator = Operator("attention");

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Queries, `[tokens, heads, head_dim]`.
    pub q: &'a Tensor,
    /// Keys, `[tokens, kv_heads, head_dim]`.
    pub k: &'a Tensor,
    /// Values, `[tokens, kv_heads, head_dim]`.
    pub v: &'a Tensor,
    /// What scores are multiplied with, usually one over the root of `head_dim`.
    pub scale: f64,
    /// Which tokens belong together.
    pub sequences: Sequences<'a>,
    /// The most tokens each sees, itself included; all before it, where there is none.
    pub window: Option<usize>,
}

/// What [`forward`] returns.
#[derive(Clone, Debug)]
pub struct Attended {
    /// `[tokens, heads, head_dim]`.
    pub out: Tensor,
    /// Natural logarithm of the sum of the exponentials of each query's scores, `[heads,
    /// tokens]`; the backward needs it.
    pub lse: Tensor,
}

/// Gradients that [`backward`] returns, of the shapes of their inputs.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Of the queries.
    pub dq: Tensor,
    /// Of the keys.
    pub dk: Tensor,
    /// Of the values.
    pub dv: Tensor,
}

/// softmax(scale q k^T) v, each token over those it sees.
pub fn forward(inputs: &Inputs<'_>) -> Result<Attended> {
    let mut timed = OP.timed(Pass::Forward);
    let sizes = Sizes::of(inputs)?;
    timed.does(sizes.forward_work(inputs));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(inputs.q) {
        return cuda::forward(&gpu, inputs, &sizes);
    }
    with_float!(sizes.dtype, T => {
        let operands = Operands::<T>::read(inputs, &sizes)?;
        let (q, k, v) = (operands.q.lock()?, operands.k.lock()?, operands.v.lock()?);
        let scale = Float::of(inputs.scale);
        let heads = cpu::Heads { q: &q, k: &k, v: &v, scale, sizes, sees: Sees::of(inputs) };
        let (out, lse) = cpu::forward(&heads);
        let out = OP.output(out, &sizes.queries())?;
        Ok(Attended { out, lse: OP.output(lse, &sizes.lse())? })
    })
}

/// The gradients of the inputs from `dout`, the gradient of the output, and from what the forward
/// returned.
pub fn backward(dout: &Tensor, inputs: &Inputs<'_>, attended: &Attended) -> Result<Gradients> {
    let mut timed = OP.timed(Pass::Backward);
    let sizes = Sizes::of(inputs)?;
    timed.does(sizes.backward_work(inputs));
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(inputs.q) {
        return cuda::backward(&gpu, dout, inputs, attended, &sizes);
    }
    with_float!(sizes.dtype, T => {
        let operands = Operands::<T>::read(inputs, &sizes)?;
        let dout = OP.tensor::<T>("dout", dout, &sizes.queries())?;
        let out = OP.tensor::<T>("out", &attended.out, &sizes.queries())?;
        let lse = OP.tensor::<T>("lse", &attended.lse, &sizes.lse())?;
        let (q, k, v) = (operands.q.lock()?, operands.k.lock()?, operands.v.lock()?);
        let scale = Float::of(inputs.scale);
        let heads = cpu::Heads { q: &q, k: &k, v: &v, scale, sizes, sees: Sees::of(inputs) };
        let (dout, out, lse) = (dout.lock()?, out.lock()?, lse.lock()?);
        let saved = backward::Saved { dout: &dout, out: &out, lse: &lse };
        let [dq, dk, dv] = backward::backward(&heads, &saved);
        Ok(Gradients {
            dq: OP.output(dq, &sizes.queries())?,
            dk: OP.output(dk, &sizes.keys())?,
            dv: OP.output(dv, &sizes.keys())?,
        })
    })
}

/// Which tokens see which.
#[derive(Clone, Copy)]
struct Sees<'a> {
    sequences: Sequences<'a>,
    window: usize,
}

impl<'a> Sees<'a> {
    fn of(inputs: &Inputs<'a>) -> Self {
        Self {
            sequences: inputs.sequences,
            window: inputs.window.unwrap_or(usize::MAX),
        }
    }

    /// The keys that a query sees; both count from the start of their sequence.
    fn keys(&self, query: usize) -> Range<usize> {
        (query + 1).saturating_sub(self.window)..query + 1
    }

    /// The keys that any of a block of queries sees.
    fn keys_of_block(&self, queries: &Range<usize>) -> Range<usize> {
        self.keys(queries.start).start..queries.end
    }
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    dtype: DType,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Sizes {
    fn of(inputs: &Inputs<'_>) -> Result<Self> {
        let [tokens, heads, head_dim] =
            OP.sizes("q", inputs.q.dims(), "[tokens, heads, head_dim]")?;
        let [_, kv_heads, _] = OP.sizes("k", inputs.k.dims(), "[tokens, kv_heads, head_dim]")?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("as many heads as a divisor of the {heads} query heads");
            return Err(OP.shape_error("k", inputs.k.dims(), expected));
        }
        inputs.sequences.expect(OP, tokens)?;
        if inputs.window == Some(0) {
            return Err(OpError::Argument {
                op: OP.0,
                name: "window",
                value: 0.0,
                expected: "1 or more: every token sees itself",
            });
        }
        let dtype = OP.dtype("q", inputs.q)?;
        Ok(Self {
            dtype,
            tokens,
            heads,
            kv_heads,
            head_dim,
        })
    }

    /// Operations of a product of every query with every key that it sees.
    fn product_flops(&self, inputs: &Inputs<'_>) -> f64 {
        let window = inputs.window.unwrap_or(usize::MAX);
        let sequences = 0..inputs.sequences.count(self.tokens);
        let pairs = sequences.map(|index| {
            let len = inputs.sequences.range(index).len();
            // Of the first tokens each sees one more than the one before it.
            let (growing, window) = (len.min(window) as f64, window as f64);
            growing * (growing + 1.0) / 2.0 + (len as f64 - growing) * window.min(len as f64)
        });
        2.0 * (self.heads * self.head_dim) as f64 * pairs.sum::<f64>()
    }

    /// Scores and their product with the values; reads q, k and v, writes out and the log-sum-exps.
    fn forward_work(&self, inputs: &Inputs<'_>) -> Work {
        let moved = 2 * self.tokens * (self.heads + self.kv_heads) * self.head_dim;
        Work::flops(2.0 * self.product_flops(inputs))
            .moving(moved, self.dtype)
            .moving(self.tokens * self.heads, DType::F32)
    }

    /// Scores once more, and two products for each of the two of the forward; reads what that had and
    /// gave and dout, writes three gradients.
    fn backward_work(&self, inputs: &Inputs<'_>) -> Work {
        let moved = 4 * self.tokens * (self.heads + self.kv_heads) * self.head_dim;
        Work::flops(5.0 * self.product_flops(inputs))
            .moving(moved, self.dtype)
            .moving(self.tokens * self.heads, DType::F32)
    }

    /// Query heads that read one key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn queries(&self) -> [usize; 3] {
        [self.tokens, self.heads, self.head_dim]
    }

    fn keys(&self) -> [usize; 3] {
        [self.tokens, self.kv_heads, self.head_dim]
    }

    fn lse(&self) -> [usize; 2] {
        [self.heads, self.tokens]
    }
}

/// The inputs, checked.
struct Operands<T> {
    q: Operand<T>,
    k: Operand<T>,
    v: Operand<T>,
}

impl<T: Float> Operands<T> {
    fn read(inputs: &Inputs<'_>, sizes: &Sizes) -> Result<Self> {
        Ok(Self {
            q: OP.tensor("q", inputs.q, &sizes.queries())?,
            k: OP.tensor("k", inputs.k, &sizes.keys())?,
            v: OP.tensor("v", inputs.v, &sizes.keys())?,
        })
    }
}
