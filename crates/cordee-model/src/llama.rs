//! The Llama block: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
//!
//! Touvron et al., arXiv:2302.13971 and 2307.09288; grouped queries: Ainslie et al., arXiv:2305.13245.

use std::sync::Arc;

use candle_core::Tensor;
use cordee_config::ModelConfig;
use cordee_ops::{attention, linear, rms_norm, rotary, swiglu};

use crate::{Context, Gradients, Init, ModelError, Parameter, Saved, Segment, Weights};

const NAME: &str = "a Llama block";

// Order of the block's parameters.
const ATTENTION_NORM: usize = 0;
const QUERY: usize = 1;
const KEY: usize = 2;
const VALUE: usize = 3;
const OUTPUT: usize = 4;
const FFN_NORM: usize = 5;
const GATE: usize = 6;
const UP: usize = 7;
const DOWN: usize = 8;

/// One block.
pub(crate) struct LlamaBlock {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    norm_eps: f64,
    rotary: Arc<rotary::Table>,
    parameters: Vec<Parameter>,
}

impl LlamaBlock {
    pub(crate) fn new(layer: usize, config: &ModelConfig, rotary: Arc<rotary::Table>) -> Self {
        let ModelConfig { dim, ffn, heads, .. } = *config;
        let kv_heads = config.kv_heads.unwrap_or(heads);
        let head_dim = config.head_dim.unwrap_or(dim / heads);
        let normal = Init::Normal { std: config.init_std };
        // Each block adds twice to the residual stream; starting these two smaller keeps its
        // variance from growing with depth (GPT-2, Radford et al. 2019, section 2.3).
        let into_residual = Init::Normal { std: config.init_std / (2.0 * config.layers as f64).sqrt() };
        let parameter = |name: &str, shape: &[usize], init| {
            Parameter::new(format!("model.layers.{layer}.{name}.weight"), shape, init)
        };
        let parameters = vec![
            parameter("input_layernorm", &[dim], Init::Ones),
            parameter("self_attn.q_proj", &[heads * head_dim, dim], normal),
            parameter("self_attn.k_proj", &[kv_heads * head_dim, dim], normal),
            parameter("self_attn.v_proj", &[kv_heads * head_dim, dim], normal),
            parameter("self_attn.o_proj", &[dim, heads * head_dim], into_residual),
            parameter("post_attention_layernorm", &[dim], Init::Ones),
            parameter("mlp.gate_proj", &[ffn, dim], normal),
            parameter("mlp.up_proj", &[ffn, dim], normal),
            parameter("mlp.down_proj", &[dim, ffn], into_residual),
        ];
        Self { heads, kv_heads, head_dim, norm_eps: config.norm_eps, rotary, parameters }
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// `[n, heads × head_dim]` as `[rows, seq_len, heads, head_dim]`; no copy.
    fn split_heads(&self, context: &Context<'_>, x: &Tensor, heads: usize) -> Result<Tensor, ModelError> {
        Ok(x.reshape((context.rows, context.seq_len, heads, self.head_dim))?)
    }

    /// The inverse of [`Self::split_heads`].
    fn merge_heads(&self, context: &Context<'_>, x: &Tensor, heads: usize) -> Result<Tensor, ModelError> {
        Ok(x.reshape((context.rows * context.seq_len, heads * self.head_dim))?)
    }
}

impl Segment for LlamaBlock {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn forward(&self, context: &Context<'_>, weights: Weights<'_>, x: Tensor) -> Result<(Tensor, Saved), ModelError> {
        let (normed, rstd) = rms_norm::forward(&x, weights.get(ATTENTION_NORM), self.norm_eps)?;
        let project = |parameter, heads| {
            self.split_heads(context, &linear::forward(&normed, weights.get(parameter))?, heads)
        };
        let q = rotary::apply(project(QUERY, self.heads)?, &self.rotary)?;
        let k = rotary::apply(project(KEY, self.kv_heads)?, &self.rotary)?;
        let v = project(VALUE, self.kv_heads)?;
        let (attended, lse) = attention::forward(&q, &k, &v, self.scale())?;
        let attended = self.merge_heads(context, &attended, self.heads)?;
        let mixed = linear::forward(&attended, weights.get(OUTPUT))?;

        let (hidden, ffn_normed, ffn_rstd) =
            rms_norm::forward_residual(&x, &mixed, weights.get(FFN_NORM), self.norm_eps)?;
        let gate = linear::forward(&ffn_normed, weights.get(GATE))?;
        let up = linear::forward(&ffn_normed, weights.get(UP))?;
        let activated = swiglu::forward(&gate, &up)?;
        let y = (&hidden + linear::forward(&activated, weights.get(DOWN))?)?;

        let saved = [
            x, normed, rstd, q, k, v, attended, lse, hidden, ffn_normed, ffn_rstd, gate, up, activated,
        ];
        Ok((y, Saved::new(saved)))
    }

    fn backward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        saved: Saved,
        dy: Tensor,
        gradients: &mut Gradients<'_, '_>,
    ) -> Result<Tensor, ModelError> {
        let [x, normed, rstd, q, k, v, attended, lse, hidden, ffn_normed, ffn_rstd, gate, up, activated] =
            saved.unpack(NAME)?;

        let dactivated = linear::backward(&dy, &activated, weights.get(DOWN), gradients.get(DOWN))?;
        let (dgate, dup) = swiglu::backward(&dactivated, &gate, &up)?;
        let dffn_normed = linear::backward(&dgate, &ffn_normed, weights.get(GATE), gradients.get(GATE))?;
        let dffn_normed =
            linear::backward_add(&dup, &ffn_normed, weights.get(UP), gradients.get(UP), dffn_normed)?;
        let dhidden = rms_norm::backward_residual(
            &dffn_normed,
            &hidden,
            weights.get(FFN_NORM),
            &ffn_rstd,
            gradients.get(FFN_NORM),
            dy,
        )?;

        let dattended = linear::backward(&dhidden, &attended, weights.get(OUTPUT), gradients.get(OUTPUT))?;
        let dattended = self.split_heads(context, &dattended, self.heads)?;
        let attended = self.split_heads(context, &attended, self.heads)?;
        let forward = attention::Forward { q: &q, k: &k, v: &v, out: &attended, lse: &lse };
        let (dq, dk, dv) = attention::backward(&dattended, &forward, self.scale())?;
        let dq = self.merge_heads(context, &rotary::apply_backward(dq, &self.rotary)?, self.heads)?;
        let dk = self.merge_heads(context, &rotary::apply_backward(dk, &self.rotary)?, self.kv_heads)?;
        let dv = self.merge_heads(context, &dv, self.kv_heads)?;

        let dnormed = linear::backward(&dq, &normed, weights.get(QUERY), gradients.get(QUERY))?;
        let dnormed = linear::backward_add(&dk, &normed, weights.get(KEY), gradients.get(KEY), dnormed)?;
        let dnormed = linear::backward_add(&dv, &normed, weights.get(VALUE), gradients.get(VALUE), dnormed)?;
        Ok(rms_norm::backward_residual(
            &dnormed,
            &x,
            weights.get(ATTENTION_NORM),
            &rstd,
            gradients.get(ATTENTION_NORM),
            dhidden,
        )?)
    }
}
