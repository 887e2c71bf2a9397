//! What a `config.json` can ask for that is not built here.

use serde_json::Value;

use super::{HuggingFaceError, read::Json};
use crate::schema::ModelFamily;

type Accepts<'a> = &'a dyn Fn(&Value) -> bool;

/// Fails at the first key that would make another model of it.
pub(super) fn refuse(json: Json<'_>, family: ModelFamily) -> Result<(), HuggingFaceError> {
    let is_false = |value: &Value| *value == Value::Bool(false);
    let is_true = |value: &Value| *value == Value::Bool(true);
    let one = |value: &Value| value.as_f64() == Some(1.0);
    let never = |_: &Value| false;
    let word = |words: &'static [&'static str]| {
        move |value: &Value| value.as_str().is_some_and(|word| words.contains(&word))
    };
    let silu = word(&["silu", "swish"]);
    let tanh = word(&["gelu_pytorch_tanh", "gelu_new"]);
    let any_gelu = word(&["gelu", "gelu_new", "gelu_pytorch_tanh"]);

    let everywhere: [(&str, Accepts<'_>, &str); 8] = [
        (
            "attention_bias",
            &is_false,
            "the projections of this family have their own rule for biases",
        ),
        (
            "mlp_bias",
            &is_false,
            "the feed-forward layer has no biases",
        ),
        ("attn_logit_softcapping", &never, "scores are not capped"),
        ("final_logit_softcapping", &never, "logits are not capped"),
        (
            "partial_rotary_factor",
            &one,
            "a head is rotated as a whole",
        ),
        (
            "quantization_config",
            &never,
            "weights must be plain numbers",
        ),
        (
            "use_bidirectional_attention",
            &is_false,
            "attention is causal",
        ),
        ("is_encoder_decoder", &is_false, "models are decoders"),
    ];
    let gpt2: [(&str, Accepts<'_>, &str); 4] = [
        (
            "activation_function",
            &any_gelu,
            "the feed-forward layer has GELU",
        ),
        (
            "add_cross_attention",
            &is_false,
            "there is nothing to attend to across",
        ),
        (
            "scale_attn_weights",
            &is_true,
            "scores are divided by the root of a head's width",
        ),
        (
            "scale_attn_by_inverse_layer_idx",
            &is_false,
            "scores are scaled alike in all blocks",
        ),
    ];
    let gemma: [(&str, Accepts<'_>, &str); 2] = [
        (
            "hidden_activation",
            &tanh,
            "the feed-forward layer has GELU by way of tanh",
        ),
        (
            "hidden_act",
            &tanh,
            "the feed-forward layer has GELU by way of tanh",
        ),
    ];
    let others: [(&str, Accepts<'_>, &str); 1] =
        [("hidden_act", &silu, "the feed-forward layer has SiLU")];
    let own: &[_] = match family {
        ModelFamily::Gpt2 => &gpt2,
        ModelFamily::Gemma3 => &gemma,
        _ => &others,
    };
    for (key, accepts, why) in everywhere.iter().chain(own) {
        if let Some(value) = json.get(key)
            && !accepts(value)
        {
            return Err(HuggingFaceError::Unsupported {
                key: (*key).to_owned(),
                found: value.to_string(),
                why: (*why).to_owned(),
            });
        }
    }
    Ok(())
}
