//! The Llama block: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
//!
//! Touvron et al., arXiv:2302.13971 and 2307.09288; grouped queries: Ainslie et al., arXiv:2305.13245.

use std::sync::Arc;

use candle_core::Tensor;
use cordee_config::ModelConfig;
use cordee_ops::{
    Sequences,
    attention::{self, Attended, Inputs},
    linear::{self, Branch},
    rms_norm::{self, Norm, Normed},
    rotary, swiglu,
};

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
    norm: Norm,
    rotary: Arc<rotary::Table>,
    parameters: Vec<Parameter>,
}

impl LlamaBlock {
    pub(crate) fn new(layer: usize, config: &ModelConfig, rotary: Arc<rotary::Table>) -> Self {
        let ModelConfig {
            dim, ffn, heads, ..
        } = *config;
        let kv_heads = config.kv_heads.unwrap_or(heads);
        let head_dim = config.head_dim.unwrap_or(dim / heads);
        let normal = Init::Normal {
            std: config.init_std,
        };
        // Each block adds twice to the residual stream; starting these two smaller keeps its
        // variance from growing with depth (GPT-2, Radford et al. 2019, section 2.3).
        let into_residual = Init::Normal {
            std: config.init_std / (2.0 * config.layers as f64).sqrt(),
        };
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
        Self {
            heads,
            kv_heads,
            head_dim,
            norm: Norm {
                eps: config.norm_eps,
                unit_offset: false,
            },
            rotary,
            parameters,
        }
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// `[n, heads × head_dim]` as `[n, heads, head_dim]`; no copy.
    fn split_heads(
        &self,
        context: &Context<'_>,
        x: &Tensor,
        heads: usize,
    ) -> Result<Tensor, ModelError> {
        Ok(x.reshape((context.rows * context.seq_len, heads, self.head_dim))?)
    }

    /// The inverse of [`Self::split_heads`].
    fn merge_heads(
        &self,
        context: &Context<'_>,
        x: &Tensor,
        heads: usize,
    ) -> Result<Tensor, ModelError> {
        Ok(x.reshape((context.rows * context.seq_len, heads * self.head_dim))?)
    }
}

impl Segment for LlamaBlock {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn forward(
        &self,
        context: &Context<'_>,
        weights: Weights<'_>,
        x: Tensor,
    ) -> Result<(Tensor, Saved), ModelError> {
        let Normed { y: normed, rstd } =
            rms_norm::forward(&x, weights.get(ATTENTION_NORM), self.norm)?;
        let project = |parameter, heads| {
            self.split_heads(
                context,
                &linear::forward(&normed, weights.get(parameter), None)?,
                heads,
            )
        };
        let sequences = Sequences::Rows(context.seq_len);
        let q = rotary::apply(&project(QUERY, self.heads)?, sequences, &self.rotary)?;
        let k = rotary::apply(&project(KEY, self.kv_heads)?, sequences, &self.rotary)?;
        let v = project(VALUE, self.kv_heads)?;
        let Attended { out, lse } = attention::forward(&Inputs {
            q: &q,
            k: &k,
            v: &v,
            scale: self.scale(),
            sequences,
            window: None,
        })?;
        let mixed = linear::forward(
            &self.merge_heads(context, &out, self.heads)?,
            weights.get(OUTPUT),
            None,
        )?;

        let (
            hidden,
            Normed {
                y: ffn_normed,
                rstd: ffn_rstd,
            },
        ) = rms_norm::forward_residual(&x, &mixed, weights.get(FFN_NORM), self.norm)?;
        let gate = linear::forward(&ffn_normed, weights.get(GATE), None)?;
        let up = linear::forward(&ffn_normed, weights.get(UP), None)?;
        let activated = swiglu::forward(&gate, &up)?;
        let y = (&hidden + linear::forward(&activated, weights.get(DOWN), None)?)?;

        let saved = [
            x, normed, rstd, q, k, v, out, lse, hidden, ffn_normed, ffn_rstd, gate, up, activated,
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
        let [
            x,
            normed,
            rstd,
            q,
            k,
            v,
            out,
            lse,
            hidden,
            ffn_normed,
            ffn_rstd,
            gate,
            up,
            activated,
        ] = saved.unpack(NAME)?;

        let dactivated = linear::backward(&dy, &activated, weights.get(DOWN), gradients.get(DOWN))?;
        let (dgate, dup) = swiglu::backward(&dactivated, &gate, &up)?;
        linear::backward_weight(&dgate, &ffn_normed, gradients.get(GATE))?;
        linear::backward_weight(&dup, &ffn_normed, gradients.get(UP))?;
        let dffn_normed = linear::backward_input(&[
            Branch {
                dy: &dgate,
                weight: weights.get(GATE),
            },
            Branch {
                dy: &dup,
                weight: weights.get(UP),
            },
        ])?;
        let norm = rms_norm::Backward {
            norm: self.norm,
            dy: &dffn_normed,
            x: &hidden,
            weight: weights.get(FFN_NORM),
            rstd: &ffn_rstd,
            residual: Some(&dy),
        };
        let dhidden = rms_norm::backward(&norm, gradients.get(FFN_NORM))?;

        let attended = self.merge_heads(context, &out, self.heads)?;
        let dattended = linear::backward(
            &dhidden,
            &attended,
            weights.get(OUTPUT),
            gradients.get(OUTPUT),
        )?;
        let dattended = self.split_heads(context, &dattended, self.heads)?;
        let sequences = Sequences::Rows(context.seq_len);
        let inputs = Inputs {
            q: &q,
            k: &k,
            v: &v,
            scale: self.scale(),
            sequences,
            window: None,
        };
        let attention::Gradients { dq, dk, dv } =
            attention::backward(&dattended, &inputs, &Attended { out, lse })?;
        let dq = rotary::apply_backward(&dq, sequences, &self.rotary)?;
        let dk = rotary::apply_backward(&dk, sequences, &self.rotary)?;
        let dq = self.merge_heads(context, &dq, self.heads)?;
        let dk = self.merge_heads(context, &dk, self.kv_heads)?;
        let dv = self.merge_heads(context, &dv, self.kv_heads)?;

        linear::backward_weight(&dq, &normed, gradients.get(QUERY))?;
        linear::backward_weight(&dk, &normed, gradients.get(KEY))?;
        linear::backward_weight(&dv, &normed, gradients.get(VALUE))?;
        let dnormed = linear::backward_input(&[
            Branch {
                dy: &dq,
                weight: weights.get(QUERY),
            },
            Branch {
                dy: &dk,
                weight: weights.get(KEY),
            },
            Branch {
                dy: &dv,
                weight: weights.get(VALUE),
            },
        ])?;
        let norm = rms_norm::Backward {
            norm: self.norm,
            dy: &dnormed,
            x: &x,
            weight: weights.get(ATTENTION_NORM),
            rstd: &rstd,
            residual: Some(&dhidden),
        };
        Ok(rms_norm::backward(&norm, gradients.get(ATTENTION_NORM))?)
    }
}
