//! Whole training steps against PyTorch's, on a trace of them.

use std::{collections::HashMap, path::Path};

use cordee_comm::SharedMemoryGroup;
use cordee_config::{ModelConfig, OptimizerConfig, Recompute};
use cordee_data::Batch;
use cordee_model::Model;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{
    TrainState,
    engine::Engine,
    optimizer::{self, Update},
    state::parameter_views,
};

fn model_config(config: &Value) -> ModelConfig {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let toml = format!(
        "dim = {}\nlayers = {}\nheads = {}\nkv_heads = {}\nhead_dim = {}\nffn = {}\nrope_theta = {:?}\nnorm_eps = {:?}\ntie_embeddings = {}",
        size("hidden_size"),
        size("num_hidden_layers"),
        size("num_attention_heads"),
        size("num_key_value_heads"),
        size("head_dim"),
        size("intermediate_size"),
        config["rope_parameters"]["rope_theta"].as_f64().unwrap(),
        config["rms_norm_eps"].as_f64().unwrap(),
        config["tie_word_embeddings"].as_bool().unwrap(),
    );
    toml::from_str(&toml).unwrap()
}

fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs()
}

#[test]
fn llama_trains_as_in_pytorch() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
    };
    let (config, trace) = (json("config.json"), json("trace.json"));
    let size = |key: &str| trace[key].as_u64().unwrap() as usize;
    let (micro_batches, rows, seq_len) = (size("micro_batches"), size("rows"), size("seq"));

    let vocab_size = config["vocab_size"].as_u64().unwrap() as usize;
    let model = Model::new(&model_config(&config), vocab_size, seq_len).unwrap();
    let mut state = TrainState::new(&model, &mut SharedMemoryGroup::solo()).unwrap();
    let file = std::fs::read(dir.join("model.safetensors")).unwrap();
    let weights: HashMap<String, _> = SafeTensors::deserialize(&file)
        .unwrap()
        .tensors()
        .into_iter()
        .collect();
    assert_eq!(weights.len(), model.parameters().len());
    for slot in state.layout.slots() {
        let bytes = weights[slot.name()].data();
        let start = slot.offset() * 4;
        state.parameters.as_mut_bytes()[start..start + bytes.len()].copy_from_slice(bytes);
    }

    let file = std::fs::read(dir.join("batches.safetensors")).unwrap();
    let batches = SafeTensors::deserialize(&file).unwrap();
    let tokens: Vec<u32> = batches
        .tensor("tokens")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let masks = batches.tensor("loss_mask").unwrap().data();
    let mut micro_batch = tokens
        .chunks_exact(rows * (seq_len + 1))
        .zip(masks.chunks_exact(rows * seq_len));

    let optimizer_config = OptimizerConfig::default();
    let mut engine = Engine::new(&model, Recompute::None);
    let (mut worst_loss, mut worst_norm) = (0.0_f64, 0.0_f64);
    for (index, expected) in trace["trace"].as_array().unwrap().iter().enumerate() {
        let (mut nll, mut trained) = (0.0, 0.0);
        let views = parameter_views(&state.layout, &state.parameters).unwrap();
        let mut gradients = state.gradients.views_mut(state.layout.slots()).unwrap();
        for _ in 0..micro_batches {
            let (tokens, mask) = micro_batch.next().unwrap();
            let batch = Batch {
                rows,
                seq_len,
                tokens: tokens.to_vec(),
                loss_mask: Some(mask.to_vec()),
                documents: None,
                sources: vec![0; rows],
            };
            let loss = engine
                .forward_backward(&batch, &views, &mut gradients)
                .unwrap();
            nll += loss.nll_sum;
            trained += loss.trained as f64;
        }
        drop((views, gradients));
        let grad_norm = optimizer::gradient_norm(&state, trained).unwrap();
        let number = |key: &str| expected[key].as_f64().unwrap();
        assert_eq!(Some(trained as u64), expected["tokens_trained"].as_u64());
        worst_loss = worst_loss.max(relative(nll / trained, number("loss")));
        worst_norm = worst_norm.max(relative(grad_norm, number("grad_norm")));
        let update = Update {
            step: index as u64 + 1,
            lr: number("lr"),
            tokens_trained: trained,
        };
        optimizer::apply(
            &optimizer_config,
            model.parameters(),
            &mut state,
            &update,
            grad_norm,
        )
        .unwrap();
        state.gradients.fill_zero();
    }
    println!("largest relative difference: loss {worst_loss:.1e}, gradient norm {worst_norm:.1e}");
    assert!(worst_loss < 2e-6, "loss differs by {worst_loss:e}");
    assert!(worst_norm < 1e-5, "gradient norm differs by {worst_norm:e}");
}
