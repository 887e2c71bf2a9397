//! Self-attention: projections of queries, keys and values, what happens to them head by head,
//! causal grouped-query attention (Ainslie et al., arXiv:2305.13245), and the way back to the model's width.

use std::sync::Arc;

use candle_core::Tensor;
use cordee_config::ModelConfig;
use cordee_ops::{
    attention::{self, Attended, Inputs},
    rotary,
};

use super::{
    Norm, Projection, backward_together, forward_together,
    head_input::{HeadInput, KeptHeads},
};
use crate::{Context, Gradients, Keep, ModelError, Weights, parameter::ParameterList};

/// The attention of one block.
pub(crate) struct SelfAttention {
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    queries: HeadInput,
    keys: HeadInput,
    scale: f64,
    window: Option<usize>,
}

/// In what the attentions of families differ.
pub(crate) struct AttentionKind {
    /// Whether queries, keys and values have biases.
    pub(crate) has_bias: bool,
    /// Whether queries and keys are normalised head by head.
    pub(crate) has_head_norms: bool,
    pub(crate) rotary: Option<Arc<rotary::Table>>,
    pub(crate) scale: f64,
    pub(crate) window: Option<usize>,
}

/// What is kept of a forward. All of it is dear.
pub(crate) struct KeptAttention {
    q: KeptHeads,
    k: KeptHeads,
    v: Tensor,
    attended: Attended,
}

/// What a layer read, and the gradient of what it gave; both `[tokens, dim]`.
pub(crate) struct Ends<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) dy: &'a Tensor,
}

/// One over the root of a head's width, which scores are usually multiplied with.
pub(crate) fn usual_scale(head_dim: usize) -> f64 {
    1.0 / (head_dim as f64).sqrt()
}

/// Standard deviation of the initial weights of projections into the residual stream. Each block
/// adds to it twice; starting these two smaller keeps its variance from growing with depth (GPT-2,
/// Radford et al. 2019, section 2.3).
pub(crate) fn into_residual_std(config: &ModelConfig) -> f64 {
    config.init_std / (2.0 * config.layers as f64).sqrt()
}

impl SelfAttention {
    /// With a projection each, under the names that Llama gave them.
    pub(crate) fn new(
        list: &mut ParameterList,
        config: &ModelConfig,
        kind: &AttentionKind,
    ) -> Self {
        let (dim, head_dim) = (config.dim, config.head_dim());
        let (heads, kv_heads) = (config.heads, config.kv_heads());
        let of = [
            ("self_attn.q_proj", heads),
            ("self_attn.k_proj", kv_heads),
            ("self_attn.v_proj", kv_heads),
        ]
        .map(|(name, heads)| (name, [heads * head_dim, dim]));
        let [query, key, value] = Projection::together(list, of, kind.has_bias, config.init_std);
        let shape = [dim, heads * head_dim];
        let std = into_residual_std(config);
        let output = Projection::new(list, "self_attn.o_proj", shape, std);
        let mut head_input = |name: &str, heads| HeadInput {
            heads,
            head_dim,
            norm: kind
                .has_head_norms
                .then(|| Norm::new(list, &format!("self_attn.{name}"), head_dim, config)),
            rotary: kind.rotary.clone(),
        };
        Self {
            query,
            key,
            value,
            output,
            queries: head_input("q_norm", heads),
            keys: head_input("k_norm", kv_heads),
            scale: kind.scale,
            window: kind.window,
        }
    }

    /// GPT-2's: one matrix projects to queries, keys and values.
    pub(crate) fn fused(list: &mut ParameterList, config: &ModelConfig) -> Self {
        let (dim, heads, head_dim) = (config.dim, config.heads, config.head_dim());
        let all = Projection::conv1d(list, "attn.c_attn", [3 * dim, dim], config.init_std);
        let [query, key, value] = all.split(3 * dim);
        let std = into_residual_std(config);
        let output = Projection::conv1d(list, "attn.c_proj", [dim, dim], std);
        let head_input = || HeadInput {
            heads,
            head_dim,
            norm: None,
            rotary: None,
        };
        Self {
            query,
            key,
            value,
            output,
            queries: head_input(),
            keys: head_input(),
            scale: usual_scale(head_dim),
            window: None,
        }
    }

    /// What is added to the residual stream, `[tokens, dim]`, from its norm; with `residual`, the sum
    /// with that.
    pub(crate) fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        keep: Keep,
    ) -> Result<(Tensor, KeptAttention), ModelError> {
        let [q, k, v] = self.project(weights, x)?;
        let (q, kept_q) = self.queries.forward(context, weights, q, keep)?;
        let (k, kept_k) = self.keys.forward(context, weights, k, keep)?;
        let attended = attention::forward(&self.inputs(context, [&q, &k, &v]))?;
        let merged = self.merge(context, &attended.out)?;
        let kept = KeptAttention {
            q: kept_q,
            k: kept_k,
            v,
            attended,
        };
        Ok((self.output.forward(weights, &merged, residual)?, kept))
    }

    /// Queries, keys and values, each `[tokens, its heads, head_dim]`: together, unless norms are to read
    /// the heads as rows.
    fn project(&self, weights: Weights<'_>, x: &Tensor) -> Result<[Tensor; 3], ModelError> {
        let projections = [&self.query, &self.key, &self.value];
        let head_dim = self.keys.head_dim;
        if self.queries.norm.is_none() {
            let outputs = forward_together(weights, x, projections)?;
            let heads = |index| outputs.heads(index, head_dim);
            return Ok([heads(0)?, heads(1)?, heads(2)?]);
        }
        let apart = |projection: &Projection| {
            let output = projection.forward(weights, x, None)?;
            Ok::<_, ModelError>(output.reshape((output.dims()[0], (), head_dim))?)
        };
        let [q, k, v] = projections.map(apart);
        Ok([q?, k?, v?])
    }

    /// What [`attention`] is asked for.
    pub(crate) fn layer(&self) -> attention::Layer {
        let HeadInput {
            heads, head_dim, ..
        } = self.queries;
        let kv_heads = self.keys.heads;
        let strides = if self.queries.norm.is_none() {
            [heads + 2 * kv_heads; 3]
        } else {
            [heads, kv_heads, kv_heads]
        };
        attention::Layer {
            heads,
            kv_heads,
            head_dim,
            scale: self.scale,
            window: self.window,
            strides: strides.map(|heads| heads * head_dim),
        }
    }

    /// Elements that a forward keeps of a token: queries, keys, values, what was attended, and the
    /// log-sum-exp of each head.
    pub(crate) fn kept_per_token(&self, keep: Keep) -> usize {
        let HeadInput {
            heads, head_dim, ..
        } = self.queries;
        let values = self.keys.heads * head_dim;
        self.queries.kept_per_token(keep)
            + self.keys.kept_per_token(keep)
            + values
            + heads * (head_dim + 1)
    }

    /// The gradient of what was read.
    pub(crate) fn backward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        kept: KeptAttention,
        Ends { x, dy }: Ends<'_>,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let KeptAttention {
            q: kept_q,
            k: kept_k,
            v,
            attended,
        } = kept;
        let merged = self.merge(context, &attended.out)?;
        let dmerged = self.output.backward(weights, dy, &merged, gradients)?;
        let dout = dmerged.reshape(attended.out.shape())?;
        let q = self.queries.output(context, weights, &kept_q)?;
        let k = self.keys.output(context, weights, &kept_k)?;
        let attention::Gradients { dq, dk, dv } =
            attention::backward(&dout, &self.inputs(context, [&q, &k, &v]), &attended)?;
        drop((q, k, v, attended));
        let dq = self
            .queries
            .backward(context, weights, &kept_q, dq, gradients)?;
        let dk = self
            .keys
            .backward(context, weights, &kept_k, dk, gradients)?;
        let outputs = [(&self.query, &dq), (&self.key, &dk), (&self.value, &dv)];
        backward_together(weights, outputs, x, gradients)
    }

    fn inputs<'a>(&self, context: &Context<'a>, [q, k, v]: [&'a Tensor; 3]) -> Inputs<'a> {
        Inputs {
            q,
            k,
            v,
            scale: self.scale,
            sequences: context.sequences,
            window: self.window,
        }
    }

    /// Heads side by side, `[tokens, heads × head_dim]`; no copy.
    fn merge(&self, context: &Context<'_>, out: &Tensor) -> Result<Tensor, ModelError> {
        let width = self.queries.heads * self.queries.head_dim;
        Ok(out.reshape((context.tokens(), width))?)
    }
}
