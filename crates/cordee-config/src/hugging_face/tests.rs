//! Real spellings of `config.json`, read and written again.

use serde_json::{Value, json};

use super::{Facts, from_json, to_json};
use crate::schema::{Gelu, ModelConfig, ModelFamily, RopeScaling, RopeScalingKind};

fn read(json: &Value) -> ModelConfig {
    from_json(&json.to_string()).unwrap()
}

/// What is written reads back as the same model.
fn round_trip(model: &ModelConfig) {
    let facts = Facts {
        vocab_size: model.vocab_size.unwrap(),
        max_positions: model.max_positions.unwrap(),
        torch_dtype: "float32",
        eos_token_id: Some(2),
    };
    assert_eq!(from_json(&to_json(model, &facts)).unwrap(), *model);
}

fn refusal(json: &Value) -> String {
    from_json(&json.to_string()).unwrap_err().to_string()
}

/// `json` with one key more, or another value of it.
fn with(json: &Value, key: &str, value: Value) -> Value {
    let mut json = json.clone();
    json[key] = value;
    json
}

/// meta-llama/Llama-3.2-1B.
fn llama_3_2() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128_000, "eos_token_id": 128_001, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131_072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500_000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128_256
    })
}

/// google/gemma-3-1b-pt.
fn gemma_3_1b() -> Value {
    json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid",
        "eos_token_id": 1, "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1_000_000,
        "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262_144
    })
}

/// Qwen/Qwen2.5-0.5B.
fn qwen_2_5() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
        "eos_token_id": 151_643, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_cache": true, "use_mrope": false,
        "use_sliding_window": false, "vocab_size": 151_936
    })
}

#[test]
fn llama() {
    let model = read(&llama_3_2());
    let expected = ModelConfig {
        vocab_size: Some(128_256),
        kv_heads: Some(8),
        head_dim: Some(64),
        max_positions: Some(131_072),
        rope_theta: 500_000.0,
        rope_scaling: Some(RopeScaling {
            kind: RopeScalingKind::Llama3,
            factor: 32.0,
            low_freq_factor: Some(1.0),
            high_freq_factor: Some(4.0),
            original_max_positions: Some(8192),
        }),
        tie_embeddings: true,
        ..ModelConfig::llama(2048, 16, 32, 8192)
    };
    assert_eq!(model, expected);
    round_trip(&model);

    // As transformers 5 writes it.
    let mut new = llama_3_2();
    let mut rope = new["rope_scaling"].take();
    rope["rope_theta"] = new["rope_theta"].take();
    new["rope_parameters"] = rope;
    new["dtype"] = new["torch_dtype"].take();
    assert_eq!(read(&new), expected);
}

#[test]
fn what_old_llamas_leave_out() {
    // Llama 2: no head_dim, no rope_theta, `type` for `rope_type`.
    let json = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
        "num_attention_heads": 8, "max_position_embeddings": 512, "vocab_size": 100,
        "rope_scaling": {"type": "linear", "factor": 2.0}
    });
    let model = read(&json);
    assert_eq!((model.head_dim, model.kv_heads), (Some(8), Some(8)));
    assert_eq!((model.rope_theta, model.norm_eps), (10_000.0, 1e-6));
    assert!(!model.tie_embeddings);
    let scaling = model.rope_scaling.as_ref().unwrap();
    assert_eq!(
        (scaling.kind, scaling.factor),
        (RopeScalingKind::Linear, 2.0)
    );
    round_trip(&model);
    assert_eq!(read(&with(&json, "head_dim", Value::Null)), model);
}

#[test]
fn qwen2() {
    let model = read(&qwen_2_5());
    assert_eq!(model.family, ModelFamily::Qwen2);
    assert_eq!((model.head_dim, model.kv_heads), (Some(64), Some(2)));
    assert_eq!(
        (model.sliding_window, model.full_attention_layers.as_ref()),
        (None, None)
    );
    round_trip(&model);

    // A window in all blocks but the first `max_window_layers`.
    let windowed = with(&qwen_2_5(), "use_sliding_window", json!(true));
    assert_eq!(read(&windowed).sliding_window, None);
    let model = read(&with(&windowed, "max_window_layers", json!(2)));
    assert_eq!(model.sliding_window, Some(32768));
    assert_eq!(model.full_attention_layers, Some(vec![0, 1]));
    assert_eq!((model.window(1), model.window(2)), (None, Some(32768)));
    round_trip(&model);
}

#[test]
fn qwen3() {
    // Qwen/Qwen3-0.6B.
    let json = json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151_643, "eos_token_id": 151_645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1_000_000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "use_cache": true, "use_sliding_window": false, "vocab_size": 151_936
    });
    let model = read(&json);
    let expected = ModelConfig {
        family: ModelFamily::Qwen3,
        vocab_size: Some(151_936),
        kv_heads: Some(8),
        head_dim: Some(128),
        max_positions: Some(40960),
        rope_theta: 1e6,
        norm_eps: 1e-6,
        tie_embeddings: true,
        ..ModelConfig::llama(1024, 28, 16, 3072)
    };
    assert_eq!(model, expected);
    round_trip(&model);
    assert!(refusal(&with(&json, "attention_bias", json!(true))).contains("attention_bias"));
}

#[test]
fn mistral() {
    // mistralai/Mistral-7B-v0.1; later ones have no window.
    let json = json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000
    });
    let model = read(&json);
    assert_eq!((model.head_dim, model.kv_heads), (Some(128), Some(8)));
    assert_eq!(
        (model.window(0), model.window(31)),
        (Some(4096), Some(4096))
    );
    round_trip(&model);
    let wide = read(&with(&json, "sliding_window", Value::Null));
    assert_eq!(wide.window(0), None);
    round_trip(&wide);
}

#[test]
fn gemma3() {
    let model = read(&gemma_3_1b());
    let expected = ModelConfig {
        family: ModelFamily::Gemma3,
        vocab_size: Some(262_144),
        kv_heads: Some(1),
        head_dim: Some(256),
        max_positions: Some(32768),
        rope_theta: 1e6,
        rope_local_theta: Some(1e4),
        sliding_window: Some(512),
        full_attention_layers: Some(vec![5, 11, 17, 23]),
        query_pre_attn_scalar: Some(256),
        gelu: Some(Gelu::Tanh),
        norm_eps: 1e-6,
        tie_embeddings: true,
        ..ModelConfig::llama(1152, 26, 4, 6912)
    };
    assert_eq!(model, expected);
    round_trip(&model);

    // As transformers 5 writes it, with the global frequencies scaled as in the larger ones.
    let mut new = gemma_3_1b();
    for key in [
        "rope_theta",
        "rope_local_base_freq",
        "rope_scaling",
        "sliding_window_pattern",
    ] {
        new[key].take();
    }
    new["_sliding_window_pattern"] = json!(6);
    new["layer_types"] = (1..=26)
        .map(|block| {
            if block % 6 == 0 {
                "full_attention"
            } else {
                "sliding_attention"
            }
        })
        .collect();
    new["rope_parameters"] = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}
    });
    let scaled = read(&new);
    let scaling = scaled.rope_scaling.clone().unwrap();
    assert_eq!(
        (scaling.kind, scaling.factor),
        (RopeScalingKind::Linear, 8.0)
    );
    round_trip(&scaled);
    assert_eq!(
        ModelConfig {
            rope_scaling: None,
            ..scaled
        },
        expected
    );
}

#[test]
fn gpt2() {
    // openai-community/gpt2.
    let json = json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
        "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
        "vocab_size": 50257
    });
    let model = read(&json);
    let expected = ModelConfig {
        family: ModelFamily::Gpt2,
        vocab_size: Some(50257),
        kv_heads: Some(12),
        head_dim: Some(64),
        max_positions: Some(1024),
        gelu: Some(Gelu::Tanh),
        tie_embeddings: true,
        ..ModelConfig::llama(768, 12, 12, 3072)
    };
    assert_eq!(model, expected);
    round_trip(&model);
    let exact = read(&with(&json, "activation_function", json!("gelu")));
    assert_eq!(exact.gelu, Some(Gelu::Exact));
    round_trip(&exact);
    assert!(
        refusal(&with(&json, "scale_attn_weights", json!(false))).contains("scale_attn_weights")
    );
    assert!(refusal(&with(&json, "activation_function", json!("relu"))).contains("\"relu\""));
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let (llama, gemma) = (llama_3_2(), gemma_3_1b());
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    let cases = [
        (with(&llama, "model_type", json!("mixtral")), "\"mixtral\""),
        (with(&llama, "mlp_bias", json!(true)), "mlp_bias"),
        (with(&llama, "hidden_act", json!("gelu")), "hidden_act"),
        (with(&llama, "rope_scaling", yarn.clone()), "\"yarn\""),
        (with(&llama, "rope_parameters", yarn), "\"yarn\""),
        (
            with(&llama, "partial_rotary_factor", json!(0.5)),
            "partial_rotary_factor",
        ),
        (
            with(&llama, "quantization_config", json!({"bits": 4})),
            "quantization_config",
        ),
        (
            with(&gemma, "final_logit_softcapping", json!(30.0)),
            "final_logit_softcapping",
        ),
        (
            with(&gemma, "attn_logit_softcapping", json!(50.0)),
            "attn_logit_softcapping",
        ),
        (
            with(&gemma, "hidden_activation", json!("silu")),
            "hidden_activation",
        ),
        (
            with(&gemma, "layer_types", json!(["full_attention"])),
            "layer_types",
        ),
        (
            with(&llama, "hidden_size", Value::Null),
            "`hidden_size` is missing",
        ),
        (
            with(&llama, "hidden_size", json!("wide")),
            "must be a non-negative integer",
        ),
        (json!([]), "no JSON object"),
    ];
    for (json, named) in cases {
        let error = refusal(&json);
        assert!(error.contains(named), "{named}: {error}");
    }
    let hint = from_json(r#"{"model_type": "mixtral"}"#)
        .unwrap_err()
        .hint();
    assert!(
        hint.unwrap()
            .contains("gemma3 (`gemma3_text`), gpt2 (`gpt2`)")
    );
    assert!(from_json("{").is_err());
}
